"""Sphinx configuration: pages in Markdown, and a reference that is written from the docstrings.

    sphinx-build -W --keep-going docs site

The reference follows the folders of the package. Each room gets one page with its modules, and the
commands get one page with their help, so that a new module or command appears by itself.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
# Files elsewhere in the repository that are pages as well.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "demo/README.md": "results/demo.md",
    "results/README.md": "results/rows.md",
}
sys.path.insert(0, str(ROOT))
sys.path.insert(1, str(ROOT / "tools"))  # scripts import from their own folder

from gersp_mm.commands import main  # noqa: E402
from gersp_mm.utils.called import SCRIPTS  # noqa: E402

project = "gersp_mm"
author = "The gersp_mm contributors"
copyright = author
release = runpy.run_path(str(ROOT / "gersp_mm" / "version.py"))["__version__"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = f"gersp_mm {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
exclude_patterns = ["_static"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links to headings, as on a code host
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # "Attributes:" describes the fields that autodoc lists
# Names of this package have to resolve. Those of other libraries are not looked up, so that the
# build needs no network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!gersp_mm\.).*"),
    (r"py:.*", r".*\._.*"),  # private bases
    (r"py:data", r".*"),  # constants have a comment, no docstring
]
suppress_warnings = ["ref.python"]  # two rooms may have a class of one name


def first_line(file: Path) -> str:
    """Return the first line of the docstring of a module, without importing the module."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n")[0]


def modules(folder: Path, prefix: str) -> list[str]:
    """Return the dotted names of the modules below a folder, sorted."""
    found = []
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts and not parts[-1].startswith("_"):
            found.append(".".join((prefix, *parts)))
    return found


def room_page(room: Path) -> str:
    """Return the page of one room: its sentence, then every module with its public members."""
    package = f"gersp_mm.{room.name}"
    lines = [f"# {package}", "", "```{eval-rst}", f".. automodule:: {package}", "```", ""]
    for name in modules(room, package):
        lines += [f"## {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :members:"]
        lines += ["   :show-inheritance:", "```", ""]
    return "\n".join(lines)


def resolve_public_name(app, env, node, contnode):
    """Link a name that a package re-exports, such as ``gersp_mm.GeRSP``, to its definition."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    if node.get("refdomain") != "py" or not module.startswith("gersp_mm"):
        return None
    with contextlib.suppress(ImportError, AttributeError):
        target = getattr(importlib.import_module(module), name)
        where = f"{target.__module__}.{target.__qualname__}"
        return env.get_domain("py").resolve_xref(
            env, node["refdoc"], app.builder, node["reftype"], where, node, contnode
        )
    return None


def help_text(words: list[str], call: Callable[[], object]) -> str:
    """Return what a command prints for ``--help``, called by the words given."""
    output, argv = io.StringIO(), sys.argv
    sys.argv = [*words, "--help"]
    try:
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            call()
    finally:
        sys.argv = argv
    return output.getvalue().rstrip()


def commands_page() -> str:
    """Return the page of the commands: the help of ``gersp`` and of the other scripts."""
    lines = ["# Commands", "", "Each command prints this text with `--help`.", ""]
    names = list(main.COMMANDS)
    for group in main.GROUPS:
        listed = importlib.import_module(f"gersp_mm.commands.{group}").COMMANDS
        names += [f"{group} {name}" for name in listed]
    for name in names:
        run = functools.partial(main.cli, [*name.split(), "--help"])
        text = help_text(["gersp", name], run)
        lines += [f"## gersp {name}", ""]
        if name in SCRIPTS:
            lines += [f"A checkout has it as `tools/{SCRIPTS[name]}` too.", ""]
        lines += ["```text", text, "```", ""]
    for script in sorted((ROOT / "tools").rglob("*.py")):
        name = script.relative_to(ROOT).as_posix()
        if name.removeprefix("tools/") in SCRIPTS.values() or script.with_suffix(".sh").is_file():
            continue
        run = functools.partial(runpy.run_path, str(script), run_name="__main__")
        text = help_text([name], run)
        lines += [f"## {name}", "", "```text", text, "```", ""]
    return "\n".join(lines)


def link_pages(app, path: Path, parent: str, content: list[str]) -> None:
    """Point the links of an included file at pages, and leave links to other files out."""
    folder = (DOCS / path).resolve().parent

    def replace(match: re.Match) -> str:
        label, link, anchor = match.groups()
        target = (folder / link).resolve()
        page = PAGES.get(target.relative_to(ROOT).as_posix())
        if page:  # headings of included files cannot be linked to
            return f"[{label}](/{page})"
        if target.is_relative_to(DOCS):
            return f"[{label}](/{target.relative_to(DOCS).as_posix()}{anchor or ''})"
        return label

    content[0] = re.sub(r"(?<!!)\[([^\]]+)\]\((?!http|#)([^)#]+)(#[^)]*)?\)", replace, content[0])


def write_reference() -> None:
    """Write the pages of the reference; a page that would not change keeps its time."""
    pages = {"commands": commands_page()}
    table = ["| room | contents |", "|---|---|"]
    for init in sorted((ROOT / "gersp_mm").glob("*/__init__.py")):
        room = init.parent
        if room.name != "commands":
            pages[room.name] = room_page(room)
            table.append(f"| [`gersp_mm.{room.name}`]({room.name}.md) | {first_line(init)} |")
    tree = ["```{toctree}", ":hidden:", "", *pages, "```"]
    pages["index"] = "\n".join(
        ["# Reference", "", "[Commands](commands.md) with their options, and the package by room.",
         "Every type that a config names as `gersp_mm.Name` is an attribute of `gersp_mm`.", "",
         *table, "", *tree, ""]
    )  # fmt: skip
    REFERENCE.mkdir(exist_ok=True)
    for old in REFERENCE.glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        file = REFERENCE / f"{name}.md"
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect the functions above with the build."""
    app.connect("config-inited", lambda app, config: write_reference())
    app.connect("include-read", link_pages)
    app.connect("missing-reference", resolve_public_name)
