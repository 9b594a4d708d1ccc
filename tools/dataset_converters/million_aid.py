"""Count the images of Million-AID and list them; GeRSP pre-trains on the test split.

The body is gersp_mm/preparation/million_aid.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.prepare import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main("million_aid")
