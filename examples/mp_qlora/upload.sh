#!/usr/bin/env bash
# Publish the merged model: HUB_MODEL_ID=OWNER/NAME upload.sh (needs a token: `hf auth login`).
set -euo pipefail
newtune upload "$(dirname "$0")/config.yaml" --merged \
  --to "${HUB_MODEL_ID:?set HUB_MODEL_ID=OWNER/NAME, where the model goes}" "$@"
