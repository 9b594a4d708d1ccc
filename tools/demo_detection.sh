#!/usr/bin/env bash
# Tree crowns of the demo scenes: sets up .venv with the detection libraries, cuts the scenes, and
# fine-tunes Faster R-CNN from the quickstart's backbone and from random initialisation.
#   bash tools/quickstart.sh && bash tools/demo_detection.sh
#   bash tools/demo_detection.sh --help
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Report wrong arguments before the installation. The module checks them without the rest of the
# package; in an editable install, where this script lies in .mim, it is two folders up.
module=$here/../gersp_mm/commands/demo_detection.py
[ -f "$module" ] || module=$here/../../commands/demo_detection.py
for python in python3 python; do
    if command -v "$python" >/dev/null 2>&1; then
        "$python" "$module" "$@" || exit
        break
    fi
done
case " $* " in *" --help "* | *" -h "*) exit 0 ;; esac

bash "$here/setup_env.sh" --downstream --demo
exec "${GERSP_VENV:-$here/../.venv}/bin/python" "$here/demo_detection.py" "$@"
