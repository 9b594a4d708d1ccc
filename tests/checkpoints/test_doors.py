"""No command that reads a file runs code of it, whichever way the code lies in it."""

from __future__ import annotations

import argparse
import ast
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import checkpoint as host
from mmengine.runner.checkpoint import CheckpointLoader

from gersp_mm.backbones.exported import describe_backbone
from gersp_mm.commands import benchmark, convert, demo_detection, test, train
from gersp_mm.commands.options import run_tool
from gersp_mm.constants import PREFIX, RGB_MEAN, RGB_STD
from gersp_mm.engine import checkpoint_loading
from gersp_mm.utils.errors import UserError
from gersp_mm.visualization import cam, neighbours, projection
from tests.support.commands import parse
from tests.support.runs import demo_config
from tests.support.runs import train as train_run
from tests.support.smoke import ROOT, forget_runs, write_images

TOUCH = "(lambda e: e and open(e, 'a').close())(__import__('os').environ.get('GERSP_MARKER'))"
RESNET = dict(
    type="ResNet", depth=18, num_stages=4, out_indices=(3,), base_channels=8, stem_channels=8
)


class Runs:
    """Unpickling this touches the file that the environment names."""

    def __reduce__(self) -> Any:
        return eval, (TOUCH,)


class Kit(NamedTuple):
    """Configs and attack files by name: of two trainings, and in the exported form."""

    folder: Path
    pretraining: Path
    classifier: Path
    frozen: Path
    training: dict[str, Path]
    tuning: dict[str, Path]
    exported: dict[str, Path]


ATTACKS = ("pickle", "config text", "nested init_cfg")


@pytest.fixture(scope="module")
def kit(pair_data, tmp_path_factory) -> Kit:
    folder = tmp_path_factory.mktemp("doors")
    for label in range(3):
        write_images(folder / "others" / f"class_{label}", 2, seed=200 + label)
    cfg = demo_config(pair_data, folder / "run", iterations=2)
    cfg.default_hooks.knn_eval = dict(
        type="gersp_mm.KNNEvalHook", train=str(pair_data / "natural"),
        test=str(folder / "others"), size=32, k=1,
    )  # fmt: skip
    cfg.dump(folder / "pretraining.py")
    train_run(cfg)
    whole = torch.load(folder / "run" / "epoch_1.pth", weights_only=False)
    backbone = {n: t for n, t in whole["state_dict"].items() if n.startswith(PREFIX)}
    inner = dict(RESNET, init_cfg=dict(type="Pretrained", checkpoint=str(folder / "pickle.pth")))
    texts = {
        "pickle": f"model = dict(backbone={RESNET})\n",
        "config text": f"model = dict(backbone={RESNET})\nmarker = {TOUCH}\n",
        "nested init_cfg": "model = dict(backbone=dict(type='ImageClassifier', backbone="
        f"{inner}))\n",
    }
    classifier = write_classifier(folder, pair_data)
    forget_runs()
    arguments = [str(classifier), "--work-dir", str(folder / "tuning")]
    train.main([*arguments, "--cfg-options", "pretrained=None"])
    forget_runs()
    tuned = torch.load(folder / "tuning" / "epoch_1.pth", weights_only=False)
    training, tuning, exported = {}, {}, {}
    for name, text in texts.items():
        state = backbone
        if name == "nested init_cfg":
            state = {PREFIX + key: tensor for key, tensor in backbone.items()}
        scale = (list(RGB_MEAN), list(RGB_STD))
        meta = describe_backbone(state, "ResNet-18", "GeRSP", *scale, epoch=1, config=text)
        extra = dict(extra=Runs()) if name == "pickle" else {}
        exported[name] = folder / f"{name.split()[0]}.pth"
        torch.save(dict(state_dict=state, meta=meta, **extra), exported[name])
        for files, run in ((training, whole), (tuning, tuned)):
            kind = "training" if run is whole else "tuning"
            files[name] = folder / f"{kind}_{name.split()[0]}.pth"
            torch.save({**run, "meta": {**run["meta"], "config": text}, **extra}, files[name])
    frozen = write_classifier(folder, pair_data, frozen=True)
    return Kit(folder, folder / "pretraining.py", classifier, frozen, training, tuning, exported)


def write_classifier(folder: Path, pair_data: Path, frozen: bool = False) -> Path:
    lines = [f"class_{label}/00{number}.jpg {label}\n" for label in range(3) for number in range(2)]
    (folder / "train.txt").write_text("".join(lines))
    pipeline = [
        dict(type="LoadImageFromFile"), dict(type="Resize", scale=(32, 32)),
        dict(type="PackInputs"),
    ]  # fmt: skip
    dataset = dict(
        type="CustomDataset", data_root=str(pair_data / "natural"), pipeline=pipeline,
        ann_file=str(folder / "train.txt"), metainfo=dict(classes=("a", "b", "c")),
    )  # fmt: skip
    loader = dict(batch_size=3, num_workers=0, dataset=dataset, sampler=dict(type="DefaultSampler"))
    init_cfg = dict(type="Pretrained", checkpoint="not-given", prefix=PREFIX)
    cfg = dict(
        default_scope="mmpretrain",
        pretrained="not-given",
        model=dict(
            type="ImageClassifier",
            backbone=dict(RESNET, init_cfg=init_cfg),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(type="LinearClsHead", num_classes=3, in_channels=64, topk=(1,)),
            data_preprocessor=dict(
                mean=list(RGB_MEAN), std=list(RGB_STD), to_rgb=True, num_classes=3
            ),
        ),
        test_dataloader=loader,
        test_evaluator=dict(type="Accuracy", topk=(1,)),
        test_cfg=dict(),
        evaluation=dict(
            dataset="K", protocol="fine-tuning", split="all", metrics={"accuracy/top1": "top-1"}
        ),
        default_hooks=dict(pretrained_check=dict(type="gersp_mm.PretrainedCheckHook")),
        log_level="WARNING",
    )
    if frozen:
        cfg["test_cfg"] = dict(
            type="gersp_mm.FrozenFeaturesLoop", train_ann_file=str(folder / "train.txt"),
            knn=dict(k=1, temperature=0.07),
        )  # fmt: skip
    else:
        cfg.update(
            train_dataloader=loader, train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01)),
        )  # fmt: skip
    path = folder / ("frozen.py" if frozen else "classifier.py")
    Config(cfg).dump(path)
    return path


# Each takes the kit, the file and an empty folder. "training" files are whole checkpoints of the
# pre-training, which could be resumed.

Door = Callable[[Kit, Path, Path], Any]


def train_with(config: str, *options: str) -> Door:
    def door(kit: Kit, file: Path, work: Path) -> None:
        texts = [option.format(file=file) for option in options]
        train.main([str(getattr(kit, config)), "--work-dir", str(work), *texts])

    return door


def resume_newest(kit: Kit, file: Path, work: Path) -> None:
    (work / "epoch_1.pth").write_bytes(file.read_bytes())
    train.main([str(kit.pretraining), "--work-dir", str(work), "--resume"])


def test_with(config: str) -> Door:
    def door(kit: Kit, file: Path, work: Path) -> None:
        test.main([str(getattr(kit, config)), str(file), "--work-dir", str(work)])

    return door


test_with.__test__ = False  # type: ignore[attr-defined]


def convert_with(*options: str) -> Door:
    return lambda kit, file, work: convert.main([str(file), str(work / "out.pth"), *options])


def plan(checkpoint: str, arch: str = "resnet18", protocol: str = "knn") -> Door:
    def door(kit: Kit, file: Path, work: Path) -> None:
        images = Path(Config.fromfile(kit.classifier).test_dataloader.dataset.data_root)
        task = "{protocol: knn, data: K, k: 1, temperature: 0.07}"
        if protocol == "finetune":
            task = f"{{protocol: finetune, config: {kit.classifier}}}"
        (work / "plan.yml").write_text(
            f"checkpoints: {{A: {checkpoint.format(file=file)}}}\nseeds: [0]\n"
            f"arch: {arch.format(file=file)}\n"
            f"datasets: {{K: {{train: {images}, test: {kit.folder / 'others'}, size: 32}}}}\n"
            f"tasks: [{task}]\nwork_dir: {work}\n"
        )
        benchmark.main([str(work / "plan.yml")])

    return door


def picture(module: Any, *options: str) -> Door:
    def door(kit: Kit, file: Path, work: Path) -> None:
        images = str(Path(Config.fromfile(kit.classifier).test_dataloader.dataset.data_root))
        arguments = [
            str(kit.folder / "others"),
            "--size",
            "32",
            "--checkpoints",
            f"A={file}",
            "random",
        ]
        arguments += [option.format(images=images) for option in options]
        run_tool(module.run, parse(module, [*arguments, "--out", str(work / "out.png")]))

    return door


def own_statistics(kit: Kit, file: Path, work: Path) -> None:
    from tests.benchmark.test_mini import statistics

    views = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    run_tool(
        lambda args: statistics.write_with_own_statistics(file, work / "out.pth", views),
        argparse.Namespace(),
    )


def tree_demo(kit: Kit, file: Path, work: Path) -> None:
    run_tool(lambda args: demo_detection.read_meta(file), argparse.Namespace())


MORE = ("--cfg-options", "train_cfg.max_epochs=2")
DOORS: dict[str, tuple[str, Door]] = {
    "train --resume": ("training", train_with("pretraining", "--resume", "{file}", *MORE)),
    "train --resume, the newest": ("training", resume_newest),
    "train load_from=": (
        "training", train_with("pretraining", "--cfg-options", "load_from={file}"),
    ),
    "train pretrained=": (
        "training", train_with("pretraining", "--cfg-options", "pretrained={file}"),
    ),
    "train init_cfg of another part": (
        "exported",
        train_with(
            "classifier", "--cfg-options", "pretrained=None", "model.neck.type=LinearNeck",
            "model.neck.in_channels=64", "model.neck.out_channels=64", "model.neck.gap_dim=2",
            "model.neck.init_cfg.type=Pretrained", "model.neck.init_cfg.checkpoint={file}",
        ),
    ),
    "fine-tuning, pretrained=": (
        "exported", train_with("classifier", "--cfg-options", "pretrained={file}"),
    ),
    "fine-tuning, load_from=": (
        "exported", train_with("classifier", "--cfg-options", "load_from={file}"),
    ),
    "fine-tuning, --resume": ("tuning", train_with("classifier", "--resume", "{file}", *MORE)),
    "train a config of frozen features": (
        "exported", train_with("frozen", "--cfg-options", "pretrained={file}"),
    ),
    "test of a pre-training": ("training", test_with("pretraining")),
    "test of a classifier": ("tuning", test_with("classifier")),
    "test of frozen features": ("exported", test_with("frozen")),
    "convert": ("training", convert_with()),
    "convert --trust": ("training", convert_with("--trust")),
    "convert an exported file": ("exported", convert_with("--trust")),
    "benchmark": ("exported", plan("{file}")),
    "benchmark, fine-tuning": ("exported", plan("{file}", protocol="finetune")),
    "benchmark, arch": (
        "exported",
        plan("null", "{{type: ResNet, depth: 18, init_cfg: {{type: Pretrained, "
             "checkpoint: '{file}'}}}}"),
    ),
    "tsne": ("exported", picture(projection)),
    "neighbours": ("exported", picture(neighbours, "--train", "{images}")),
    "cam_grid": ("exported", picture(cam, "--train", "{images}")),
    "own_statistics": ("exported", own_statistics),
    "demo_detection": ("training", tree_demo),
}  # fmt: skip


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """The file that attack files touch; MMEngine's own loaders come back afterwards."""
    path = tmp_path / "executed"
    monkeypatch.setenv("GERSP_MARKER", str(path))
    monkeypatch.setattr(CheckpointLoader, "_schemes", CheckpointLoader._schemes.copy())
    return path


def test_attack_files_are_what_they_are_said_to_be(kit, marker):
    with pytest.raises(UserError):  # read by our reader, they do nothing
        checkpoint_loading.read_weights(str(kit.exported["pickle"]))
    assert not marker.exists()
    torch.load(kit.exported["pickle"], weights_only=False)
    assert marker.exists()
    marker.unlink()
    meta = torch.load(kit.training["config text"], weights_only=False)["meta"]
    Config.fromstring(meta["config"], ".py")
    assert marker.exists()
    marker.unlink()
    nested = torch.load(kit.exported["nested init_cfg"], weights_only=True)["meta"]["config"]
    monkey = CheckpointLoader._schemes.copy()
    CheckpointLoader.register_scheme("", host.load_from_local, force=True)
    cfg = Config.fromstring(nested, ".py").model.backbone.backbone
    MODELS.build(cfg).init_weights()
    CheckpointLoader._schemes = monkey
    assert marker.exists()


# Fine-tuning runs tools/train.py in a process of its own, which takes long and is a door itself.
CASES = [
    (door, attack)
    for door in DOORS
    for attack in ATTACKS
    if attack == "pickle" or door != "benchmark, fine-tuning"
]


@pytest.mark.parametrize(("door", "attack"), CASES)
def test_nothing_of_the_file_runs(kit, marker, door, attack, tmp_path, capfd):
    kind, enter = DOORS[door]
    work = tmp_path / "work"
    work.mkdir()
    code = 0
    try:
        enter(kit, getattr(kit, kind)[attack], work)
    except SystemExit as error:
        code = int(error.code or 0)
    assert not marker.exists()
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) in ((0, 0), (2, 1)), errors
    if attack == "pickle" and "trust" not in door and "exported" not in door:
        assert code == 2
        if door != "benchmark, arch":
            assert "needs more than tensors and plain Python: builtins.eval" in errors[0]


ADDRESSES = [
    "{file}", "http://x.org/a/evil.pth", "https://x.org/evil.pth", "torchvision://resnet50",
    "modelzoo://resnet50", "openmmlab://vgg16_caffe", "open-mmlab://vgg16_caffe",
    "mmcls://vgg11", "s3://bucket/evil.pth", "petrel://bucket/evil.pth",
    "open-mmlab:s3://bucket/evil.pth", "pavi://evil.pth", "added://evil.pth",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_address_of_mmengine_leads_to_our_reader(kit, marker, address, monkeypatch, tmp_path):
    file = kit.exported["pickle"]
    opened = []

    def download(url: str, path: str, progress: bool) -> None:
        opened.append(url)
        Path(path).write_bytes(file.read_bytes())

    class Storage:
        def get(self, name: str) -> bytes:
            opened.append(name)
            return file.read_bytes()

    def of_another_library(filename: str, map_location: Any = None) -> Any:
        return pickle.loads(file.read_bytes())

    CheckpointLoader.register_scheme("added://", of_another_library)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(checkpoint_loading, "get_file_backend", lambda *_, **__: Storage())
    checkpoint_loading.read_all_weights_safely()
    with pytest.raises(UserError) as error:
        CheckpointLoader.load_checkpoint(address.format(file=file), "cpu", logger="silent")
    assert not marker.exists()
    if address.startswith(("pavi", "added")):
        assert "Download the file and give its path" in str(error.value)
    else:
        assert "builtins.eval" in str(error.value)
        assert len(opened) == (address != "{file}")
    functions = {loader.__module__ for loader in CheckpointLoader._schemes.values()}
    assert functions == {checkpoint_loading.__name__}


def test_addresses_that_lead_nowhere(marker, monkeypatch, tmp_path):
    def fail(url: str, path: str, progress: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"evil.pth cannot be fetched \(OSError: no route to host"):
        checkpoint_loading.read_weights("https://x.org/evil.pth")
    with pytest.raises(UserError, match="torchvision://resnet51: MMEngine knows no model"):
        checkpoint_loading.read_weights("torchvision://resnet51")


# ------------------------------------------------------------------------------------ the source

SOURCES = [
    path
    for folder in ("gersp_mm", "tools", "benchmarks", "demo")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ".mim" not in path.parts
]


def code_from_files(tree: ast.AST) -> list[str]:
    """Names of calls that run code of what they read."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        safe = any(
            word.arg == "weights_only" and ast.unparse(word.value) == "True"
            for word in node.keywords
        )
        if (
            name in ("eval", "exec", "compile", "builtins.eval", "builtins.exec")
            or last in ("fromstring", "unsafe_load", "full_load")
            or name in ("joblib.load", "marshal.loads", "marshal.load")
            or name.startswith(("pickle.load", "dill.load", "cloudpickle.load"))
            or name in ("torch.load", "torch.jit.load") and not safe
            or any(w.arg == "allow_pickle" and ast.unparse(w.value) != "False"
                   for w in node.keywords)
        ):  # fmt: skip
            found.append(f"line {node.lineno}: {name}")
    return found


def test_no_source_runs_what_a_file_holds():
    assert len(SOURCES) > 130
    found = {
        path.relative_to(ROOT).as_posix(): calls
        for path in SOURCES
        if (calls := code_from_files(ast.parse(path.read_text(encoding="utf-8"))))
    }
    # The one that is left reads by an unpickler which knows tensors and plain Python alone.
    assert list(found) == ["gersp_mm/checkpoints/read.py"] and len(found[next(iter(found))]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "eval(text)", "exec(text)", "Config.fromstring(text, '.py')", "pickle.load(file)",
        "pickle.loads(data)", "torch.load(path)", "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.unsafe_load(text)",
    ],
)  # fmt: skip
def test_the_search_finds_each(text):
    assert code_from_files(ast.parse(text))
    assert not code_from_files(ast.parse("model.eval(); torch.load(path, weights_only=True)"))
