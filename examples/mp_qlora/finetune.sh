#!/usr/bin/env bash
# Train the adapter. Keys of config.yaml may follow: finetune.sh --base_model ./my-model
set -euo pipefail
newtune train "$(dirname "$0")/config.yaml" "$@"
