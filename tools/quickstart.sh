#!/usr/bin/env bash
# From a bare machine to a first result: sets up .venv, fetches the demo images, pre-trains GeRSP
# (ResNet-18, minutes on two CPU cores; a GPU is used if there is one), exports the backbone and
# compares it with the same network at random initialisation.
#   bash tools/quickstart.sh
#   bash tools/quickstart.sh --help
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Report wrong arguments before the installation. The module checks them without the rest of the
# package; in an editable install, where this script lies in .mim, it is two folders up.
module=$here/../gersp_mm/commands/quickstart.py
[ -f "$module" ] || module=$here/../../commands/quickstart.py
for python in python3 python; do
    if command -v "$python" >/dev/null 2>&1; then
        "$python" "$module" "$@" || exit
        break
    fi
done
case " $* " in *" --help "* | *" -h "*) exit 0 ;; esac

bash "$here/setup_env.sh" --demo
exec "${GERSP_VENV:-$here/../.venv}/bin/python" "$here/quickstart.py" "$@"
