#!/usr/bin/env bash
# Finds a Python and takes a lock for tools/setup_env.py; `--help` lists the options.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ " $*" != *" -h"* && " $*" != *" --h"* ]]; then # help changes nothing and waits for nobody
    lock=${GERSP_VENV:-$here/../.venv}.lock # a pip that outlives a killed run keeps it, too
    mkdir -p "$(dirname "$lock")" && exec 9>"$lock" || exit 1
    command -v flock >/dev/null && ! flock -n 9 &&
        echo "another run is working on ${lock%.lock}, waiting for it" && flock 9
fi
for python in ${GERSP_PYTHON:-python3.11 python3.12 python3.10 python3.13 python3 python}; do
    fits='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))'
    "$python" -c "$fits" >/dev/null 2>&1 && exec "$python" "$here/setup_env.py" "$@"
done
echo "setup_env: no Python >= 3.10 with the venv module found${GERSP_PYTHON:+ (GERSP_PYTHON=$GERSP_PYTHON)};" \
    "install one (apt-get install python3-venv) or name it: GERSP_PYTHON=/path/to/python" >&2
exit 1
