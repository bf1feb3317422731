#!/usr/bin/env bash
# Fold the adapter into the dequantised base, one shard at a time, and prove the result.
set -euo pipefail
newtune merge "$(dirname "$0")/config.yaml" "$@"
