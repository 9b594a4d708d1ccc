"""Files that are damaged, odd or hostile: refused with the reason in words, or handled."""

from __future__ import annotations

import argparse
import datetime
import enum
import io
import os
import pickle
import re
import struct
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Hashable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
import torchvision
from mmpretrain.models import ResNet, ResNetV1c

from gersp_mm.backbones.convert import take_backbone, write_backbone
from gersp_mm.backbones.exported import describe_backbone, export_backbone
from gersp_mm.backbones.verify import feature_difference
from gersp_mm.checkpoints.integrity import weights_sha256
from gersp_mm.checkpoints.read import read_checkpoint
from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.utils.errors import UserError
from tests.support.checkpoints import (
    backbone,
    by_position,
    mlp,
    plain_resnet,
    seco,
    unknown_classes,
)

NETWORK = plain_resnet(18)
STATE = backbone(NETWORK, "backbone.")
STUDENT_AND_TEACHER = {**backbone(NETWORK, "encoder_q."), **backbone(NETWORK, "encoder_k.")}


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def without(*parts: str, state: dict | None = None) -> dict:
    return {n: v for n, v in (state or STATE).items() if not any(part in n for part in parts)}


def cast(dtype: torch.dtype) -> dict:
    return {n: v.to(dtype) if v.is_floating_point() else v for n, v in STATE.items()}


def with_value(value: float) -> dict:
    wrong = torch.zeros(64, 3, 7, 7)
    wrong[3, 1, 2, 2] = value
    return {**STATE, "backbone.conv1.weight": wrong}


def flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 2] ^= 0xFF
    return bytes(changed)


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        for name, data in files.items():
            content.writestr(name, data)
    return buffer.getvalue()


def tar(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as content:
        entry = tarfile.TarInfo("checkpoint.pth")
        entry.size = len(data)
        content.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def program() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def network_state(name: str, prefix: str = "backbone.", **options: Any) -> dict:
    with torch.device("meta"):
        network = getattr(torchvision.models, name)(**options)
    return {
        prefix + n: torch.zeros((), dtype=v.dtype).expand(v.shape)
        for n, v in network.state_dict().items()
    }


def deep_stem() -> bytes:
    return saved({f"backbone.{n}": v for n, v in ResNetV1c(depth=18).state_dict().items()})


def renamed(old: str, new: str, state: dict | None = None) -> dict:
    return {n.replace(old, new): v for n, v in (state or STATE).items()}


def exported(path: Path, **changes: Any) -> bytes:
    export_backbone(
        {n: v.contiguous() for n, v in STATE.items()}, path, "ResNet-18", "GeRSP", [0.0], [1.0]
    )
    content = torch.load(path, weights_only=True)
    content["state_dict"].update(changes)
    return saved(content)


def archive_without_hashes() -> bytes:
    from torch.serialization import set_crc32_options  # not in older versions

    try:
        set_crc32_options(False)
        return saved(STATE)
    finally:
        set_crc32_options(True)


def in_itself() -> bytes:
    content: dict = {}
    content["state_dict"] = content
    return saved(content)


class Hostile:
    """Runs a command when it is unpickled by anything that trusts it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


class Evaluated(Hostile):
    """Does so by way of a built-in function."""

    def __reduce__(self) -> Any:
        return eval, (f"__import__('os').system('touch {self.marker}')",)


WHOLE = plain_resnet(18)
SAFETENSORS = struct.pack("<Q", 2) + b"{}"
OLD = dict(_use_new_zipfile_serialization=False)

# name: (content of the file, the reason)
REFUSED: dict[str, tuple[Any, str]] = {
    # what is no checkpoint
    "empty": (b"", "is empty (0 bytes): download it again"),
    "web page": (b"<!DOCTYPE html><html>Google Drive - Virus scan</html>", "is a web page (HTML)"),
    "web page after blank lines": (b"\n\n  <html></html>", "is a web page (HTML)"),
    "Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "is a Git LFS pointer, not the file: run `git lfs pull`",
    ),
    "server's error": (b'{"error": "not found"}', "is JSON text, such as a server's error"),
    "text": (b"hello, world", "starts with b'hello, w': this is not a PyTorch checkpoint"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "is packed with gzip: unpack it first"),
    "RAR": (b"Rar!\x1a\x07" + bytes(50), "is a RAR archive: unpack it first"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(50), "is an HDF5 file (Keras, TensorFlow)"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(50), "is a PNG image"),
    "tar": (tar(saved(STATE)), "is a tar archive: unpack it first"),
    "zip of the wrong kind": (
        archive(**{"model/weights.pth": b"1", "readme.md": b"2"}),
        "is a zip archive of other files (model/weights.pth, readme.md)",
    ),
    "TorchScript": (program, "is a TorchScript program"),
    "safetensors": (SAFETENSORS, "is a safetensors file: pip install safetensors"),
    "safetensors that start like a web page": (
        struct.pack("<Q", ord("<")) + b"{}", "is a safetensors file: pip install safetensors",
    ),
    "wrapped in itself": (in_itself, "holds no tensors; it has state_dict"),
    "Detectron's pickle": (pickle.dumps({"model": {}}), "a Python pickle, but not one of torch.s"),
    # damage
    "half of it": (saved(STATE)[: len(saved(STATE)) // 2], "is damaged or cut off"),
    "last bytes missing": (saved(STATE)[:-30], "is damaged or cut off"),
    "a byte changed": (flipped(saved(mlp("", *range(9), size=64))), "is damaged or cut off"),
    "half of it, older format": (
        saved(mlp("", *range(9), size=64), **OLD)[:90_000], "was its download complete?",
    ),
    # other content
    "a tensor": (saved(torch.zeros(3)), "holds a Tensor, no dict of weights"),
    "no tensors": (saved(dict(epoch=3, lr=0.1)), "holds no tensors; it has epoch, lr"),
    "nothing": (saved(dict(state_dict={})), "holds no tensors; it has nothing"),
    "a whole network": (saved(WHOLE), "needs more than tensors and plain Python: torch"),
    "projector alone": (
        saved(dict(state_dict={**mlp("neck.mlp.", 0, 2), **mlp("proj_q.projector.", 0)})),
        "has no backbone that could be converted: it holds projector alone",
    ),
    "classifier and queue": (
        saved({"head.fc.weight": torch.zeros(2), "queue": torch.zeros(2)}),
        "it holds classifier and queue alone",
    ),
    "a backbone elsewhere": (
        saved(dict(state_dict=backbone(NETWORK, "model.backbone."))),
        "Start a training from it with init_cfg.prefix='model.backbone.', or save its tensors with",
    ),
    "teacher alone": (
        saved(dict(state_dict=backbone(NETWORK, "module.encoder_k."))),
        "it holds the teacher alone (encoder_k.*): --teacher takes that",
    ),
    "unknown prefix": (
        saved(backbone(NETWORK, "net.trunk.")), "it has a ResNet below 'net.trunk.'",
    ),
    "no names that mean anything": (
        saved({"a.weight": torch.zeros(1), "b.bias": torch.zeros(1)}),
        "its tensors are called a.weight, b.bias",
    ),
    # not the whole of a ResNet
    "a tensor missing": (
        saved(without("layer3.0.bn1.running_var")),
        "is not a complete ResNet-18: 1 missing: layer3.0.bn1.running_var.",
    ),
    "a block missing": (
        saved(without("layer2.1.")), "10 missing: layer2.1.conv1.weight, layer2.1.bn1.weight",
    ),
    "stem missing": (saved(without("backbone.conv1", "backbone.bn1")), "5 missing: conv1.weight"),
    "a block too many": (
        saved({**STATE, **renamed("layer4.1.", "layer4.2.")}),
        "10 unexpected: layer4.2.conv1.weight",
    ),
    "blocks of no ResNet": (
        saved(without("layer4.1.", "layer3.1.")), "Its stages have 2-2-1-1 blocks",
    ),
    "last stage missing, by position": (
        saved(without("7.0.", "7.1.", state=by_position(NETWORK))), "not a complete ResNet-18: 25",
    ),
    "width": (
        saved(network_state("wide_resnet50_2")),
        "It is wider or narrower than the standard network",
    ),
    "narrower": (
        saved({f"backbone.{n}": v for n, v in ResNet(18, base_channels=8).state_dict().items()}),
        "It is wider or narrower than the standard network",
    ),
    "groups": (saved(network_state("resnext50_32x4d")), "grouped: it is a ResNeXt"),
    "bands": (
        saved({**STATE, "backbone.conv1.weight": torch.zeros(64, 13, 7, 7)}),
        "1 of another shape: conv1.weight is 64x13x7x7 instead of 64x3x7x7. It takes 13 bands",
    ),
    "deep stem": (deep_stem, "has the deep stem of ResNetV1c"),
    "norms without statistics": (
        saved(without("running_", "num_batches")), "40 missing: bn1.running_mean",
    ),
    "Detectron's names": (
        saved(renamed("layer1", "res2")), "It has Detectron's names and so the caffe style",
    ),
    "Detectron2's names": (
        saved({"backbone.bottom_up.res2.0.conv1.weight": torch.zeros(1)}), "has Detectron's names",
    ),
    "vision transformer": (
        saved(network_state("vit_b_16", "")),
        "it is a transformer. Only files that this package exported may hold other backbones",
    ),
    "Swin of mmpretrain": (
        saved(
            {"backbone.patch_embed.projection.weight": torch.zeros(1),
             "backbone.norm3.weight": torch.zeros(1)}
        ),
        "It is a transformer. Only files that this package exported may hold other backbones",
    ),
    # values
    "NaN": (saved(with_value(float("nan"))), "1 tensor holds NaN or infinity (backbone.conv1.w"),
    "infinity": (saved(with_value(float("inf"))), "1 tensor holds NaN or infinity"),
    "integers": (saved(cast(torch.int8)), "conv1.weight is of type torch.int8, no floating point"),
    # other networks and inputs
    "caffe in its config": (
        saved(dict(
            state_dict=STATE, meta=dict(cfg="model = dict(backbone=dict(style='caffe'), type='A')")
        )),
        "is of the caffe style",
    ),
    "BGR": (
        saved(dict(
            state_dict=STATE,
            meta=dict(cfg="data_preprocessor = dict(mean=[1, 2, 3], std=[1, 1, 1])"),
        )),
        "was trained on BGR images",
    ),
    # contradictions
    "both with and without module.": (
        saved({**STATE, **renamed("backbone.", "module.backbone.")}),
        "twice, with and without 'module.'",
    ),
    "copies that differ": (
        saved({**STATE, **backbone(plain_resnet(18, seed=5), "encoder_q.")}),
        "backbone.* and encoder_q.* are two names of one network, but differ",
    ),
}  # fmt: skip
OPTIONS: dict[str, tuple[dict, dict[str, Any], str]] = {
    "wrong depth asked for": (
        STATE, dict(arch="resnet50"), "is not a complete ResNet-50:",
    ),
    "right family, wrong depth": (
        backbone(plain_resnet(34)), dict(arch="resnet18"), "It is a ResNet-34",
    ),
    "no teacher in it": (STATE, dict(teacher=True), "it holds no teacher: leave --teacher out"),
    "another source": (STATE, dict(source="seco"), "which files of --source seco have not"),
    "no such source": (STATE, dict(source="dino"), "source must be one of 'auto', 'gersp'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case, tmp_path, monkeypatch):
    content, reason = REFUSED[case]
    path = tmp_path / "file.pth"
    path.write_bytes(content if isinstance(content, bytes) else content())
    monkeypatch.setitem(sys.modules, "safetensors", None)  # as where it is not installed
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError) as error:
        take_backbone(path)
    message = str(error.value)
    assert reason in message and str(path) in message and "\n" not in message


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_do_not_fit(case, tmp_path):
    state, options, reason = OPTIONS[case]
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError) as error:
        take_backbone(tmp_path / "file.pth", **options)
    assert reason in str(error.value)


def test_no_file_folder_and_name(tmp_path):
    with pytest.raises(UserError, match="there is no file .*absent.pth"):
        take_backbone(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="is a folder: name the checkpoint file in it"):
        take_backbone(tmp_path)
    torch.save(STATE, tmp_path / "resnet18_caffe.pth")
    with pytest.raises(UserError, match="is of the caffe style"):
        take_backbone(tmp_path / "resnet18_caffe.pth")


HANDLED: dict[str, tuple[bytes, str]] = {  # content, a note
    "fp16": (saved(cast(torch.float16)), "100 tensors of type float16 are stored as float32"),
    "bf16": (saved(cast(torch.bfloat16)), "100 tensors of type bfloat16 are stored as float32"),
    "fp64": (saved(cast(torch.float64)), "100 tensors of type float64 are stored as float32"),
    "DistributedDataParallel": (
        saved(renamed("backbone.", "module.backbone.")), "prefix of DistributedDataParallel or",
    ),
    "twice, and compiled": (
        saved(renamed("backbone.", "module.module._orig_mod.backbone.")), "or torch.compile is",
    ),
    "wrapped twice": (saved(dict(state_dict=dict(state_dict=STATE))), ""),
    "wrapped in model": (saved(dict(epoch=1, model=dict(state_dict=STATE))), ""),
    "no counters": (
        saved(without("num_batches")), "20 batch counters are not in the file and are set to 0",
    ),
    "older format": (saved(STATE, **OLD), ""),
    "newer pickle": (saved(STATE, pickle_protocol=4), ""),
    "with hashes left out": (archive_without_hashes, ""),
    "classifier in the backbone": (saved({**STATE, **mlp("backbone.fc.", 0)}), ""),
}  # fmt: skip


# torch 2.1 always writes the checksums, and its `weights_only` reads no sets.
OLD_TORCH = pytest.mark.skipif(
    not hasattr(torch.serialization, "set_crc32_options"), reason="torch is too old"
)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=OLD_TORCH) if c == "with hashes left out" else c for c in HANDLED],
)
def test_handled_and_said(case, tmp_path):
    content, note = HANDLED[case]
    (tmp_path / "file.pth").write_bytes(content if isinstance(content, bytes) else content())
    conversion = take_backbone(tmp_path / "file.pth")
    assert any(note in text for text in ("", *conversion.notes))
    for name, tensor in STATE.items():
        taken = conversion.backbone[name]
        expected = tensor.to(torch.float16) if case == "fp16" else tensor
        expected = tensor.to(torch.bfloat16) if case == "bf16" else expected
        counter = name.endswith("num_batches_tracked")
        assert taken.dtype == (torch.int64 if counter else torch.float32)
        assert taken.is_contiguous() and torch.equal(taken, expected.to(taken.dtype))
    if case in ("fp16", "no counters"):
        assert feature_difference(conversion, size=64) < 1e-6


def hostile_files(marker: Path) -> dict[str, bytes]:
    bad = Hostile(marker)
    return {
        "in the dict": saved(dict(state_dict=STATE, extra=bad)),
        "in place of the dict": saved(bad),
        "older format": saved(dict(state_dict=STATE, extra=bad), **OLD),
        "newer pickle": saved(dict(state_dict=STATE, extra=bad), pickle_protocol=4),
        "as a key's value": saved({**STATE, "backbone.conv1.weight": bad}),
        "no PyTorch at all": pickle.dumps(bad),
        "by eval": saved(dict(state_dict=STATE, extra=Evaluated(marker))),
    }


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("case", hostile_files(Path()))
def test_hostile_file_never_runs(case, trust, tmp_path):
    path, marker = tmp_path / "file.pth", tmp_path / "executed"
    path.write_bytes(hostile_files(marker)[case])
    try:
        take_backbone(path, trust=trust)
        refused = ""
    except UserError as error:
        refused = str(error)
    assert not marker.exists()
    if not trust:
        assert "needs more than tensors and plain Python:" in refused
        assert ("builtins.eval" if case == "by eval" else ".system") in refused
    # The file is what it is said to be: plain unpickling would have run it.
    if case == "no PyTorch at all":
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_unknown_classes_are_named_and_left_unread_if_trusted(tmp_path):
    path = tmp_path / "seco_resnet18_1m.ckpt"
    seco(path, NETWORK, NETWORK)
    with pytest.raises(UserError) as error:
        take_backbone(path)
    assert "pytorch_lightning.utilities.parsing.AttributeDict" in str(error.value)
    assert "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint" in str(error.value)
    assert "With --trust they are read as empty stand-ins" in str(error.value)
    conversion = take_backbone(path, trust=True)
    (note,) = [text for text in conversion.notes if text.startswith("left unread: ")]
    assert "AttributeDict" in note and "pytorch_lightning" not in sys.modules


class Settings(dict):
    """A dict of another library."""


class Level(enum.Enum):
    """An enumeration."""

    LOW = 1


def plain_objects() -> dict[str, Any]:
    table = Settings(lr=0.1)
    table.note = "attribute"
    return dict(
        date=datetime.datetime(2024, 1, 1), path=Path("a"), level=Level.LOW, table=table,
        scalar=np.float32(0.5), array=np.arange(3), text=np.str_("a"), counter=Counter("aab"),
        queue=deque([1, 2]), number=Decimal("1.5"), share=Fraction(1, 3), name=UUID(int=3),
        space=SimpleNamespace(a=1), part=partial(int, base=2), pattern=re.compile("a"), set={1, 2},
        frozen=frozenset("ab"), complex=1 + 2j, slice=slice(3), span=range(3), raw=b"a",
        bytes=bytearray(b"a"), dtype=torch.float16, device=torch.device("cpu"),
        size=torch.Size([1]), namespace=argparse.Namespace(a=1), order=OrderedDict(a=1),
        default=defaultdict(int, a=1), function=len, a_class=Settings,
        nested=[dict(at=datetime.date(2024, 1, 1), ok=1)],
    )  # fmt: skip


def odd_meta(form: str, path: Path) -> Any:
    objects = plain_objects()
    if form == "training":
        return dict(epoch=3, **objects)
    if form == "exported":
        path.write_bytes(exported(path))
        return {**torch.load(path, weights_only=True)["meta"], **objects}
    if form == "keys":
        return {key: 1 for key in objects.values() if isinstance(key, Hashable)}
    return objects[form]


@pytest.mark.parametrize(
    "form",
    ["training", pytest.param("exported", marks=OLD_TORCH), "keys", "table", "space", "date"],
)
def test_any_plain_object_in_meta_is_survived(form, tmp_path):
    meta = odd_meta(form, tmp_path / "exported.pth")
    state = {n: v.contiguous() for n, v in STATE.items()}
    torch.save(dict(meta=meta, state_dict=state), tmp_path / "file.pth")
    conversion = take_backbone(tmp_path / "file.pth", trust=True)
    write_backbone(conversion, tmp_path / "written.pth")
    written = torch.load(tmp_path / "written.pth", weights_only=True)  # plain Python alone
    assert written["state_dict"].keys() == STATE.keys()
    if form == "exported":
        assert written["meta"]["weights_sha256"] == meta["weights_sha256"]
        kept = {name: written["meta"][name] for name in ("scalar", "array", "set", "order")}
        assert kept == dict(scalar=0.5, array=[0, 1, 2], set={1, 2}, order=OrderedDict(a=1))
        assert written["meta"]["nested"] == [dict(ok=1)]
        assert "date" not in written["meta"]


def test_what_is_left_out_of_meta_is_said(tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(exported(path))
    content = torch.load(path, weights_only=True)
    content["meta"]["when"] = dict(start=datetime.date(2024, 1, 1), seconds=np.float64(3.5))
    torch.save(content, path)
    conversion = take_backbone(path, trust=True)
    assert conversion.notes == ("left unread: meta.when.start",)
    assert conversion.meta["when"] == dict(seconds=3.5)
    del content["meta"]["method"]
    torch.save(content, path)
    with pytest.raises(UserError, match="has a meta without method: export or convert it again"):
        take_backbone(path, trust=True)


def test_renamed_exports_are_converted_anew(tmp_path):
    path = tmp_path / "file.pth"
    export_backbone(STATE, path, "ResNet-18", "GeRSP", list(RGB_MEAN), list(RGB_STD))
    content = torch.load(path, weights_only=True)
    bare = {n.removeprefix("backbone."): v for n, v in content["state_dict"].items()}
    meta = {**content["meta"], "weights_sha256": weights_sha256(bare)}
    torch.save(dict(state_dict=bare, meta=meta), path)
    assert take_backbone(path).backbone.keys() == STATE.keys()


@pytest.mark.parametrize("wrapper", ["model", None])
def test_whole_network_is_refused_even_if_trusted(wrapper, tmp_path):
    path = tmp_path / "file.pth"
    torch.save({wrapper: WHOLE} if wrapper else WHOLE, path)
    with pytest.raises(UserError, match="a whole pickled ResNet.*save its state_dict"):
        take_backbone(path, trust=True)


def test_stand_ins_take_what_pickles_do_to_objects(tmp_path):
    """Items of dict and list subclasses, calls of what calls return, objects as keys, state."""
    with unknown_classes("gone.Plain", "gone.AttributeDict") as (plain, table):
        sequence = type("Sequence", (list,), {"__module__": "gone"})
        sys.modules["gone"].Sequence = sequence
        item = plain()
        item.value = 3
        content = {"a": table(b=1), plain: item, "c": sequence([1, 2]), "w": torch.ones(2)}
        torch.save(content, tmp_path / "file.pth")
    content = read_checkpoint(tmp_path / "file.pth", trust=True)
    assert content.stand_ins == ("gone.AttributeDict", "gone.Plain", "gone.Sequence")
    assert torch.equal(content.data["w"], torch.ones(2)) and len(content.data) == 4


def test_exported_files_are_held_to_their_hash(tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(exported(path))
    assert take_backbone(path).meta["method"] == "GeRSP"
    with pytest.raises(UserError, match="it holds no teacher"):
        take_backbone(path, teacher=True)
    with pytest.raises(UserError, match="holds a ResNet-18, not --arch resnet50"):
        take_backbone(path, arch="resnet50")
    path.write_bytes(exported(path, **{"backbone.bn1.bias": torch.full((64,), 0.5)}))
    with pytest.raises(UserError, match="are not those that were exported.*damaged or changed"):
        take_backbone(path)


def test_exported_transformers_pass_through(tmp_path):
    source, target = tmp_path / "swin.pth", tmp_path / "written.pth"
    state = {"backbone.patch_embed.projection.weight": torch.randn(4, 3, 2, 2)}
    meta = export_backbone(state, source, "SwinTransformer-tiny", "GeRSP", [0.0], [1.0], epoch=9)
    conversion = take_backbone(source)
    write_backbone(conversion, target)
    written = torch.load(target, weights_only=True)
    assert written["meta"] == meta
    assert torch.equal(
        *(s["backbone.patch_embed.projection.weight"] for s in (written["state_dict"], state))
    )
    with pytest.raises(UserError, match="--to timm is for standard ResNets, this is a Swin"):
        write_backbone(conversion, target, "timm")


def test_exported_nan_is_refused(tmp_path):
    path = tmp_path / "file.pth"
    state = {n: v.contiguous() for n, v in with_value(float("nan")).items()}
    meta = describe_backbone(state, "ResNet-18", "GeRSP", [0.0], [1.0])
    torch.save(dict(state_dict=state, meta=meta), path)
    with pytest.raises(UserError, match="1 tensor holds NaN or infinity"):
        take_backbone(path)


def test_safetensors_are_read_where_the_library_is(tmp_path, monkeypatch):
    library = ModuleType("safetensors.torch")
    library.load_file = lambda path: backbone(NETWORK)
    monkeypatch.setitem(sys.modules, "safetensors", ModuleType("safetensors"))
    monkeypatch.setitem(sys.modules, "safetensors.torch", library)
    (tmp_path / "model.safetensors").write_bytes(SAFETENSORS)
    conversion = take_backbone(tmp_path / "model.safetensors")
    assert conversion.counts == {"student": 120} and conversion.meta["method"] == "IMP (timm)"
