#!/usr/bin/env bash
# Evaluate a checkpoint on several GPUs, several machines, or several CPU processes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_dist_launch.sh"
dist_launch test.py "$@"
