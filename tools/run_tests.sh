#!/usr/bin/env bash
# Set up everything that the tests need, and run them. The last line is pytest's summary.
#   bash tools/run_tests.sh                      # all tests
#   bash tools/run_tests.sh -m "not slow"        # arguments go to pytest
#   bash tools/run_tests.sh tests/test_version.py -x -n 0    # -n 0: in one process
set -eu
case " $* " in *" --help "* | *" -h "*) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup_env.sh --downstream --tests --demo

# A few processes share the test files. More processes or threads would compete for the cores and for
# memory (about 5 GB each).
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "${GERSP_VENV:-.venv}/bin/python" -m pytest -n "$((cores < 4 ? cores : 4))" --dist loadfile "$@"
