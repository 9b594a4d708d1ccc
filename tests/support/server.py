"""A process of another Python, which imports once what scripts need and runs each in a fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """The tests' end of such a process.

    Args:
        process: It, with pipes to its input and from its output.
        folder: For what the scripts print.
    """

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self.process, self.folder, self.number = process, folder, 0

    def run(
        self, script: Path, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None
    ) -> str:
        """Run a script to its end and return what it printed.

        Args:
            script: Python file that is run as ``__main__``.
            *arguments: Its arguments.
            cwd: Folder that it runs in.
            env: Variables that it has besides those of the server.

        Raises:
            AssertionError: It failed. The text is the end of what it printed.
        """
        self.number += 1
        output = self.folder / f"{self.number}.log"
        order = [str(script), *map(str, arguments)], str(output), str(cwd), dict(env or {})
        print(json.dumps(order), file=self.process.stdin, flush=True)
        code = self.process.stdout.readline()
        text = output.read_text() if output.is_file() else ""
        assert code == "0\n", text[-4000:] or "the server has ended"
        return text


@contextmanager
def serving(python: Path, folder: Path) -> Iterator[Server]:
    """Start a server with a Python that sees this one's libraries, but none of this checkout."""
    folder.mkdir()
    with subprocess.Popen(
        [python, "-W", "ignore", __file__], cwd=folder, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield Server(process, folder)
        process.stdin.close()


def main() -> None:
    """Serve until the input ends. The tests' own modules are imported after the package."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is no answer
    sys.path.pop(0)  # the folder of this file
    import mmpretrain.apis  # noqa: F401

    import gersp_mm.commands.main
    import gersp_mm.engine.launch

    assert not Path(gersp_mm.__file__).is_relative_to(ROOT), gersp_mm.__file__
    sys.path.insert(0, str(ROOT))
    from tests.support.forked import Forked

    sys.path.pop(0)
    for line in sys.stdin:
        command, output, cwd, env = json.loads(line)
        child = Forked(*command, output=output, cwd=cwd, env={**os.environ, **env})
        print(child.wait(), file=answers, flush=True)


if __name__ == "__main__":
    main()
