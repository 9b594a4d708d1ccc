#!/usr/bin/env bash
# Builds the Python environment of this checkout; `--help` lists the options.
# This file only finds a Python; tools/setup_env.py does the work.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# The tested version first, then the others for which torch has wheels, then whatever there is.
candidates=(python3.11 python3.12 python3.10 python3.13 python3 python)
[ -n "${GERSP_PYTHON:-}" ] && candidates=("$GERSP_PYTHON")
for python in "${candidates[@]}"; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' \
            >/dev/null 2>&1; then
        exec "$python" "$here/setup_env.py" "$@"
    fi
done
echo "setup_env: no Python >= 3.10 with the venv module found${GERSP_PYTHON:+ (GERSP_PYTHON=$GERSP_PYTHON)};" \
    "install one (e.g. apt-get install python3 python3-venv) or name it: GERSP_PYTHON=/path/to/python" >&2
exit 1
