"""What the commands share: arguments, and errors in one line."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from gersp_mm.utils.called import as_called
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.paths import expand_home

# Error numbers of a full disk and of paths that cannot be written.
UNWRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EFBIG, errno.EIO,
}  # fmt: skip

# Modules that evaluation and pictures import, and the projects that have them.
OPTIONAL = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


class CfgOptions(argparse.Action):
    """Collect ``key=value`` strings; :func:`gersp_mm.engine.options.parse_options` reads them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Add the values to those of an earlier occurrence of the option."""
        for value in values:
            if "=" not in value:
                parser.error(f"{option_string} takes key=value, got {value!r}")
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *values])


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of all commands that read a config."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=CfgOptions,
        help="replace config values by key=value: a.b=1 c='[1,2]' d=None e='a path, as typed'",
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="say which launcher started the processes",
    )
    # Some launchers pass the local rank as an argument and set no environment variable.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def require_optional() -> None:
    """Refuse to start a long command without the libraries that its last steps need.

    Raises:
        UserError: The message names the libraries that are missing.
    """
    if missing := [project for name, project in OPTIONAL.items() if find_spec(name) is None]:
        raise UserError(_needs(missing))


def _needs(projects: list[str]) -> str:
    return f"this command needs {' and '.join(projects)}: pip install {' '.join(projects)}"


def run_tool(
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    interrupted: str = "interrupted",
) -> None:
    """Run a tool; bad input or a full disk become one line on stderr and exit code 2.

    Args:
        main: The tool.
        args: Its arguments; ``~`` is expanded in them.
        interrupted: Message after Ctrl-C.
    """
    try:
        expand_home(vars(args))
        main(args)
    except UserError as error:
        # PyTorch puts the traceback of a worker process before the message.
        text = str(error).rsplit(f"{UserError.__module__}.UserError: ", 1)[-1].strip()
        print(f"\nerror: {as_called(text)}", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        print(f"\nerror: {_needs([OPTIONAL[error.name]])}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(
            f"\nerror: {error.filename or 'a file'} cannot be written or opened "
            f"({error.strerror}). Make room or choose another path; the files written before are "
            "whole",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        raise SystemExit(130) from None
