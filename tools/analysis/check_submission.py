"""Check a file for DOTA's or LoveDA's test server before it is submitted.

The body is gersp_mm/commands/check_submission.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.check_submission import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main()
