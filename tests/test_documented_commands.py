"""Every command in README, pages and help texts is one that its tool accepts.

Each command is parsed by the tool's own parser. Configs and plans that it names exist, the options
that it gives a config change something there, and what it writes is ignored by git.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from mmpretrain.models.backbones import ResNet

from gersp_mm.backbones import export_backbone
from gersp_mm.commands import train
from gersp_mm.commands.main import cli
from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.datasets.known import EUROSAT
from gersp_mm.engine.launch import load_config
from gersp_mm.evaluation.features import EvalImages
from gersp_mm.resources import find_config
from gersp_mm.utils.errors import UserError
from tests.support.downstream import convert, write_scenes
from tests.support.smoke import forget_runs, write_classes, write_images

ROOT = Path(__file__).resolve().parent.parent
RUN = re.compile(r"^<!-- run: ([\w-]+) -->\n```\w+\n(.*?)^```", re.M | re.S)
FENCE = re.compile(r"^```(?:bash|shell)\n(.*?)^```", re.M | re.S)
INLINE = re.compile(r"`((?:python|bash|mim|gersp) [^`]+)`")
EXAMPLES = re.compile(r"^[Ee]xamples:\n((?:  .*\n?|\n)+)", re.M)
# A command that starts others, the script whose arguments they are, and its own arguments:
# (before the config, after the config).
LAUNCHERS = {
    "tools/dist_train.sh": ("tools/train.py", 0, 1),
    "tools/dist_test.sh": ("tools/test.py", 0, 2),
    "tools/slurm_train.sh": ("tools/train.py", 2, 0),
    "tools/setup_env.sh": ("tools/setup_env.py", 0, 0),
    "tools/quickstart.sh": ("tools/quickstart.py", 0, 0),
    "tools/demo_detection.sh": ("tools/demo_detection.py", 0, 0),
}
GERSP = "gersp_mm/commands/main.py"  # the installed command
CONVERT = "tools/model_converters/convert_checkpoint.py"
OTHERS = ("tools/run_tests.sh", ".ci/run")  # take the arguments of pytest, or names of steps
# Arguments that name a file or folder to write.
WRITTEN = ("out", "show_dir", "results", "target", "work_dir", "submission")
# Values that stand for what a reader puts in.
STANDS_FOR = re.compile(r"\b[A-Z_]{3,}\b|…|\.\.\.|/[{]|<")


class Command(NamedTuple):
    """A command of a page, with the script that parses it."""

    place: str
    text: str
    script: str
    arguments: tuple[str, ...]


class Parsed(BaseException):
    """Carries the arguments out of a script, which then does nothing."""


def texts() -> list[tuple[str, str]]:
    """Return (place, shell text) of every documented block, inline command and help text."""
    found: list[tuple[str, str]] = []
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for folder in ("docs", "demo", "results", "benchmarks"):
        pages += sorted((ROOT / folder).rglob("*.md"))
    for page in pages:
        name, text = page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
        if name.startswith("docs/reference/"):  # written from the help texts
            continue
        found.append((name, "\n".join(FENCE.findall(text))))
        text = text.replace("`convert ", f"`python {CONVERT} ")  # the short form in checkpoints.md
        found += [
            (name, line) for line in INLINE.findall(FENCE.sub("", text)) if line.count(" ") > 1
        ]
    for folder in ("gersp_mm", "tools", "benchmarks", "demo"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if ".mim" in file.parts:
                continue
            text = file.read_text(encoding="utf-8")
            strings = [
                node.value
                for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
            for block in (block for string in strings for block in EXAMPLES.findall(string)):
                lines = [re.sub(r"\s{2,}\(.*\)$", "", line) for line in block.split("\n")]
                found.append((file.relative_to(ROOT).as_posix(), "\n".join(lines)))
    return found


def split(place: str, text: str) -> list[Command]:
    """Return the commands of a shell text that start a script of this repository."""
    commands, variables = [], {}
    for line in re.sub(r"\\\n\s*", " ", text).split("\n"):
        if match := re.match(r"(?:export )?([A-Z_]+)=(\"[^\"]*\"|\S*)$", line.strip()):
            variables[match[1]] = match[2].strip('"')
            continue
        for name, value in reversed(variables.items()):  # a later one may hold an earlier one
            line = line.replace(f"${name}", value)
        if "#!" in line or "$(" in line:
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # prose that begins like a command
            continue
        part: list[str] = []
        for word in [*words, "&&"]:
            if word not in ("&&", "||", ";", "|"):
                part.append(word.rstrip(";"))
                continue
            commands += _command(place, part)
            part = []
    return commands


def _command(place: str, words: list[str]) -> list[Command]:
    text = " ".join(words)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    words = [word.removeprefix("../../../") for word in words]
    if words[:2] == ["mim", "train"] and "gersp_mm" in words[2:3]:
        return [Command(place, text, "tools/train.py", tuple(words[3:4]))]
    if words[:1] == ["gersp"] and len(words) > 1 and not words[1].isupper():
        return [Command(place, text, GERSP, tuple(words[1:]))]
    if len(words) < 2 or not re.search(r"(^|/)(python|bash)\d?$", words[0]):
        return []
    script = words[1].removeprefix("./")
    rest = words[2:]
    if script in LAUNCHERS:
        script, before, after = LAUNCHERS[script]
        rest = rest[before:]
        rest = [*rest[: max(after, 1)], *rest[after + 1 :]] if after else rest
    if not script.startswith(("tools/", "benchmarks/", "demo/", ".ci/")):
        return []
    return [Command(place, text, script, tuple(rest))]


COMMANDS = list(dict.fromkeys(c for place, text in texts() for c in split(place, text)))


def parse(command: Command, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Return what the script's own parser makes of the arguments."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        raise Parsed(original(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [command.script, *command.arguments])
    monkeypatch.syspath_prepend(str((ROOT / command.script).parent))
    with pytest.raises(Parsed) as parsed:
        if command.script == GERSP:
            cli()
        runpy.run_path(str(ROOT / command.script), run_name="__main__")
    return parsed.value.args[0]


def is_ignored(path: str) -> bool:
    """Say whether git ignores a file or folder of this name in the checkout."""
    command = ["git", "check-ignore", path, f"{path}/file"]
    return bool(subprocess.run(command, cwd=ROOT, capture_output=True).stdout)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c.place}: {c.text}")
def test_documented_command_is_accepted(command, monkeypatch, capsys) -> None:
    assert (ROOT / command.script).is_file()
    if command.script in OTHERS or {"--help", "-h"} & set(command.arguments):
        return
    monkeypatch.chdir(ROOT)
    arguments = parse(command, monkeypatch)
    for name in WRITTEN:
        value = getattr(arguments, name, None)
        if name == "target" and isinstance(value, str):  # the class of an activation map
            continue
        if isinstance(value, (str, Path)) and str(value) and not Path(value).is_absolute():
            assert STANDS_FOR.search(str(value)) or is_ignored(str(value)), f"{name}={value}"
    plan = getattr(arguments, "plan", None)  # of the package, or written by another command
    assert plan is None or Path(plan).is_file() or is_ignored(str(plan))
    config = getattr(arguments, "config", None)
    if isinstance(config, str) and not STANDS_FOR.search(config):
        find_config(config)
        train_or_test = command.script == GERSP and command.arguments[0] in ("train", "test")
        if train_or_test or command.script in ("tools/train.py", "tools/test.py"):
            monkeypatch.setenv("LOCAL_RANK", "0")
            arguments.launcher = "none"
            load_config(arguments)


def test_an_unknown_option_would_be_noticed(monkeypatch) -> None:
    text = "python tools/train.py configs/pretrain/gersp_r50.py --cfg-options model.queue_lenn=3"
    (command,) = split("", text)
    arguments = parse(command, monkeypatch)
    with pytest.raises(UserError, match="model.queue_lenn"):
        load_config(arguments)


def test_most_commands_are_found() -> None:
    assert len(COMMANDS) > 100
    assert {"README.md", "docs/guide/pretraining.md"} <= {c.place for c in COMMANDS}


# The same runs at a small size: few images, few channels, one epoch, one process.
SMALL = (
    "train_dataloader.batch_size=4", "train_dataloader.num_workers=0", "train_cfg.max_epochs=1",
    "model.backbone.depth=50", "model.backbone.base_channels=8", "model.backbone.stem_channels=8",
)  # fmt: skip
CONTRAST = ("model.queue_len=16", "model.neck.in_channels=256")
LABELS = ("model.natural_head.in_channels=256",)


def block(name: str) -> tuple[str, str]:
    """Return page and text of the block that a page marks with ``<!-- run: name -->``."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [(p, text) for p in pages for n, text in RUN.findall(p.read_text("utf-8")) if n == name]
    assert len(found) == 1, name
    return found[0][0].name, found[0][1]


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("own-images", [(*CONTRAST, *LABELS)]),
        ("own-images-alone", [CONTRAST]),
        ("own-classes", [(*CONTRAST, *LABELS)]),
        ("one-branch", [CONTRAST, LABELS]),
    ],
)
def test_marked_training_runs(name, small, pair_data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, options in zip(split(*block(name)), small, strict=True):
        words = [w.replace("/my/images", str(pair_data / "rs")) for w in kind.arguments]
        words = [w.replace("/my/classes", str(pair_data / "natural")) for w in words]
        if "configs/pretrain/gersp_r18_demo.py" in words:  # the demo's images are lists
            words += [f"{SOURCE}.{key}" for key in demo_sources(pair_data, words)]
            words += ["default_hooks.knn_eval=None"]
        train.main([*words, *SMALL, *options])
        forget_runs()
    assert list(tmp_path.rglob("*_backbone.pth"))


def test_the_first_lines_of_readme_run(pair_data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gersp"])
    Path("my").mkdir()
    Path("my/tiles").symlink_to(pair_data / "rs")
    Path("my/photographs").symlink_to(pair_data / "natural")
    install, pretrain, export = split(*block("first-lines"))
    assert install.script == "tools/setup_env.py"
    small = ["model.backbone.base_channels=8", "model.backbone.stem_channels=8"]
    options = [*small, *CONTRAST[1:], *LABELS, "train_dataloader.num_workers=0"]
    cli([*pretrain.arguments, "--epochs", "1", "--batch-size", "4", "--cfg-options", *options])
    forget_runs()
    with pytest.raises(SystemExit, match="2"):  # timm has no ResNet of an eighth of the channels
        cli(list(export.arguments))
    state = {f"backbone.{name}": tensor for name, tensor in ResNet(50).state_dict().items()}
    file = "work_dirs/mine/resnet50_backbone.pth"
    export_backbone(state, file, "ResNet-50", "GeRSP", list(RGB_MEAN), list(RGB_STD))
    cli(list(export.arguments))
    assert Path("hub/mine/model.safetensors").stat().st_size > 90e6
    found: dict = {}
    exec(block("first-python")[1], found)
    assert found["backbone"].num_features == 2048
    assert Path(found["downstream"]["init_cfg"]["checkpoint"]).is_file()


SOURCE = "train_dataloader.dataset"


def demo_sources(pair: Path, words: list[str]) -> list[str]:
    """Return options that put the images of a test in the place of the demo's."""
    sources = {"remote_sensing": pair / "rs", "natural": pair / "natural"}
    return [
        option
        for source, folder in sources.items()
        if f"{SOURCE}.{source}=None" not in words
        for option in (f"{source}.data_root={folder}", f"{source}.ann_file=")
    ]


@pytest.mark.parametrize("number, name", enumerate(["tensorboard", "wandb", "mlflow"]))
def test_marked_trackers_log_where_the_page_reads(number, name, pair_data, tmp_path, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    page, text = block("trackers")
    command = split(page, text)[number]
    assert name in command.arguments
    words = [*command.arguments, "--cfg-options"]
    words += [f"{SOURCE}.{key}" for key in demo_sources(pair_data, [])]
    train.main([*words, "default_hooks.knn_eval=None", *SMALL, *CONTRAST, *LABELS])
    forget_runs()
    reader = [line for line in text.split("\n") if line.startswith(name)][-1].split()[-1]
    assert list(tmp_path.glob(reader.removeprefix("sqlite:///")))


@pytest.mark.slow
def test_marked_pictures_are_drawn_from_what_the_quickstart_leaves(tmp_path, monkeypatch) -> None:
    data, run = tmp_path / "data/demo", tmp_path / "work_dirs/quickstart"
    write_images(data / "remote_sensing", 40, size=(64, 64))
    write_classes(data / "natural")
    for part in ("train", "test"):
        write_classes(data / "sites" / part, per_class=16)
    for name, folder in (("sites_train", "sites/train"), ("sites_test", "sites/test"),
                         ("natural", "natural"), ("remote_sensing", "remote_sensing")):  # fmt: skip
        files = sorted((data / folder).rglob("*.jpg"))
        labels = ["" if name == "remote_sensing" else f" {f.parent.name[-1]}" for f in files]
        lines = [f"{f.relative_to(data)}{label}" for f, label in zip(files, labels, strict=True)]
        (data / f"{name}.txt").write_text("\n".join(lines))
    state = {f"backbone.{name}": tensor for name, tensor in ResNet(18).state_dict().items()}
    run.mkdir(parents=True)
    file = run / "gersp_r18_demo_backbone.pth"
    export_backbone(state, file, "ResNet-18", "GeRSP", list(RGB_MEAN), list(RGB_STD))
    scalars = run / "20260101_000000/vis_data/scalars.json"
    scalars.parent.mkdir(parents=True)
    lines = [dict(loss_ct=6.0 - n, iter=n, step=n, epoch=1) for n in (1, 2)]
    scalars.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    commands = split(*block("pictures"))
    for command in commands:
        monkeypatch.setattr(sys, "argv", [command.script, *command.arguments])
        runpy.run_path(str(ROOT / command.script), run_name="__main__")
        forget_runs()
        out = Path(command.arguments[command.arguments.index("--out") + 1])
        assert out.stat().st_size > 1000
    assert len(commands) == 6


def test_marked_knn_evaluation_reads_what_the_converter_writes(tmp_path, monkeypatch) -> None:
    (tmp_path / "data").mkdir()
    write_scenes(tmp_path / "data/eurosat/2750", EUROSAT.classes, 64, 5)
    convert("eurosat", tmp_path / "data/eurosat", "--allow-incomplete")
    splits = tmp_path / "data/eurosat/splits"
    (splits / "eurosat-gersp-1-incomplete").rename(splits / "eurosat-gersp-1")
    monkeypatch.chdir(tmp_path)
    config: dict = {}
    exec(block("knn-eval")[1], config)
    hook = config["default_hooks"]["knn_eval"]
    assert len(EvalImages(hook["train"], size=64)) == 30
    assert len(EvalImages(hook["test"], size=64)) == 10
