"""Reading files of weights: logs, changed bytes, and the config in them."""

from __future__ import annotations

import datetime
import pickle
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from gersp_mm.backbones.exported import export_backbone
from gersp_mm.backbones.normalisation import Normalisation
from gersp_mm.checkpoints import read
from gersp_mm.checkpoints.read import (
    UNREAD,
    StandIn,
    config_values,
    read_checkpoint,
    require_finite,
    tensors_of,
)
from gersp_mm.utils.errors import UserError


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What is logged."""
    lines: list[str] = []
    monkeypatch.setattr(read, "print_log", lambda text, **_: lines.append(text))
    return lines


NO_CRC = pytest.mark.skipif(
    not hasattr(torch.serialization, "set_crc32_options"), reason="this torch always writes them"
)


def save(path: Path, content: Any, crc: bool = True, **options: Any) -> Path:
    set_crc = getattr(torch.serialization, "set_crc32_options", lambda on: None)
    set_crc(crc)
    try:
        torch.save(content, path, **options)
    finally:
        set_crc(True)
    return path


def exported(path: Path) -> Path:
    state = {"backbone.w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}
    export_backbone(state, path, "ResNet-18", "GeRSP", [0.0], [1.0], config="model = dict()")
    return path


def change(path: Path, record: str, count: int = 100) -> None:
    """Change bytes in the middle of a record of a zip file, as a bad disk would."""
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith(record))
    data = bytearray(path.read_bytes())
    middle = entry.header_offset + 64 + entry.file_size // 2
    data[middle : middle + count] = bytes(255 - byte for byte in data[middle : middle + count])
    path.write_bytes(data)


# ------------------------------------------------------------------------------------------ bytes


def test_changed_bytes_of_a_training_checkpoint_are_noticed(tmp_path, said):
    content = dict(state_dict=dict(w=torch.randn(64, 64)), optimizer=dict(m=torch.randn(64, 64)))
    path = save(tmp_path / "epoch_1.pth", content)
    read_checkpoint(path)
    change(path, "data/1")  # of the optimizer, which no hash in the meta is of
    with pytest.raises(UserError, match=r"epoch_1.pth is damaged or cut off .*Bad CRC-32 .*data/1"):
        read_checkpoint(path)
    assert not said


def test_changed_values_are_noticed_where_the_archive_is_whole(tmp_path):
    content = torch.load(exported(tmp_path / "b.pth"), weights_only=True)
    content["state_dict"]["backbone.w"][3, 3] += 1e-3
    save(tmp_path / "b.pth", content)
    with pytest.raises(UserError, match="are not those that were exported: their hash is not"):
        read_checkpoint(tmp_path / "b.pth")


@NO_CRC
def test_changed_bytes_are_noticed_by_the_hash_where_checksums_were_left_out(tmp_path, said):
    content = torch.load(exported(tmp_path / "b.pth"), weights_only=True)
    path = save(tmp_path / "b.pth", content, crc=False)
    read_checkpoint(path)
    assert not said
    change(path, "data/0")
    with pytest.raises(UserError, match="are not those that were exported"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(dict(crc=False), marks=NO_CRC, id="crc"),
        pytest.param(dict(_use_new_zipfile_serialization=False), id="older"),
    ],
)
def test_a_file_without_checksums_is_said_once(tmp_path, said, options):
    path = save(tmp_path / "old.pth", dict(w=torch.ones(3), none=torch.ones(0)), **options)
    read_checkpoint(path)
    read_checkpoint(path)
    assert said == [f"{path} holds no checksums, so changed bytes in it would not be noticed"]


def test_a_file_called_after_its_hash_needs_no_more(tmp_path, said):
    from gersp_mm.utils.files import file_sha256

    plain = dict(_use_new_zipfile_serialization=False)
    path = save(tmp_path / "resnet18.pth", dict(w=torch.ones(3)), **plain)
    named = path.rename(tmp_path / f"resnet18-{file_sha256(path)[:8]}.pth")
    read_checkpoint(named)
    assert not said
    read_checkpoint(named.rename(tmp_path / "resnet18-20210831.pth"))
    assert len(said) == 1


def test_a_file_is_verified_once_unless_it_changes(tmp_path, monkeypatch):
    path, calls = exported(tmp_path / "b.pth"), []
    verify = read.verify_records
    monkeypatch.setattr(read, "verify_records", lambda a: calls.append(1) or verify(a))
    monkeypatch.setattr("gersp_mm.checkpoints.integrity.SETTLED", -1.0)
    read_checkpoint(path)
    read_checkpoint(path)
    assert len(calls) == 1
    change(path, "data/0")
    with pytest.raises(UserError, match="Bad CRC-32"):
        read_checkpoint(path)
    monkeypatch.setattr("gersp_mm.checkpoints.integrity.SETTLED", 60.0)  # may change unseen
    fresh = exported(tmp_path / "c.pth")
    read_checkpoint(fresh)
    read_checkpoint(fresh)
    assert len(calls) == 4


def test_a_packed_archive_whose_bytes_changed(tmp_path):
    path = tmp_path / "packed.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", torch.randn(200).numpy().tobytes())
    change(path, "data.pkl", 3)
    with pytest.raises(UserError, match="packed.pth is damaged or cut off"):
        read_checkpoint(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(read, "_is_safetensors", refuse)
    with pytest.raises(UserError, match=r"b.pth cannot be read \(Permission denied\). Check"):
        read_checkpoint(exported(tmp_path / "b.pth"))


# ------------------------------------------------------------------------------------- logs, meta


def training() -> dict[str, Any]:
    log = HistoryBuffer([1.0, 2.0], [1, 1])
    info = dict(lr=np.float64(0.1), steps=np.int64(3), loss=np.array([1.0, 2.0], np.float32))
    hub = dict(log_scalars={"train/loss": log}, runtime_info=info)
    meta = dict(epoch=1, iter=6, config="import os", cfg="model = dict()", seed=np.int64(5))
    schedule = dict(milestones=Counter([8, 11]), last_step=3)  # of MultiStepLR
    return dict(
        state_dict=dict(w=torch.ones(2)), message_hub=hub, meta=meta, param_schedulers=[schedule]
    )


@pytest.mark.parametrize("torch_has_names", [True, False], ids=["torch 2.6", "torch 2.1"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_log_of_a_training_is_read_as_it_was(tmp_path, monkeypatch, torch_has_names, protocol):
    path = save(tmp_path / "epoch_1.pth", training(), pickle_protocol=protocol)
    if not torch_has_names:
        monkeypatch.delattr(torch.serialization, "safe_globals", raising=False)
    content = read_checkpoint(path)
    assert content.stand_ins == ()
    assert content.data["param_schedulers"][0]["milestones"] == Counter([8, 11])
    hub = content.data["message_hub"]
    assert type(hub["log_scalars"]["train/loss"]) is HistoryBuffer
    assert hub["log_scalars"]["train/loss"].mean() == 1.5
    assert hub["log_scalars"]["train/loss"].statistics("max", 1) == 2.0
    assert hub["runtime_info"]["lr"] == 0.1 and hub["runtime_info"]["steps"] == 3
    assert hub["runtime_info"]["loss"].tolist() == [1.0, 2.0]
    assert content.data["meta"] == dict(
        epoch=1, iter=6, config_text="import os", cfg="model = dict()", seed=5
    )


def test_a_log_brings_no_functions_with_it(tmp_path):
    log = HistoryBuffer([1.0], [1])
    before = dict(HistoryBuffer._statistics_methods)
    try:
        HistoryBuffer._statistics_methods["mean"] = HistoryBuffer.max
        path = save(tmp_path / "f.pth", dict(w=torch.ones(1), log=log))
    finally:
        HistoryBuffer._statistics_methods.update(before)
    assert read_checkpoint(path).data["log"].mean() == 1.0
    assert HistoryBuffer._statistics_methods == before


class Attribute:
    """Reads an attribute of a class when it is unpickled."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return getattr, self.arguments


@pytest.mark.parametrize(
    "arguments", [(HistoryBuffer, "__init__"), (np.ndarray, "tofile"), (torch.Size, "__class__")]
)
def test_getattr_gives_methods_of_logs_alone(tmp_path, arguments):
    path = save(tmp_path / "f.pth", dict(w=torch.ones(1), f=Attribute(*arguments)))
    with pytest.raises(UserError, match=r"plain Python: builtins.getattr\. "):
        read_checkpoint(path)
    content = read_checkpoint(path, trust=True)
    assert isinstance(content.data["f"], StandIn)
    assert pickle.loads(pickle.dumps(Attribute(*arguments))) is getattr(*arguments)


def test_other_objects_are_refused_with_what_to_do(tmp_path):
    path = save(tmp_path / "f.pth", dict(w=torch.ones(1), when=datetime.date(2024, 1, 1)))
    with pytest.raises(UserError, match=r"datetime.date\. .* run code\. Convert it"):
        read_checkpoint(path, remedy="Convert it")


# ------------------------------------------------------------------------------- tensors, configs


def test_where_the_weights_lie():
    tensor = torch.ones(2)
    assert tensors_of("f", dict(state_dict=dict(w=tensor, n=3))) == dict(w=tensor)
    assert tensors_of("f", dict(w=tensor)) == dict(w=tensor)
    with pytest.raises(UserError, match="f holds its weights below 'model', .* f OUT.pth"):
        tensors_of("f", dict(model=dict(w=tensor), epoch=2))
    with pytest.raises(UserError, match="below 'ema', where"):
        tensors_of("f", dict(state_dict={}, ema=dict(w=tensor)))
    with pytest.raises(UserError, match="f holds no tensors; it has epoch, lr. Name"):
        tensors_of("f", dict(epoch=3, lr=0.1))
    with pytest.raises(UserError, match="f holds no tensors; it has nothing"):
        tensors_of("f", dict(state_dict={}))


def test_not_finite_is_named():
    require_finite("f", dict(a=torch.ones(2), counts=torch.tensor([1])))
    largest = torch.full((9,), torch.finfo(torch.float32).max)
    require_finite("f", dict(sum_overflows=largest))
    bad = torch.tensor([float("inf"), float("-inf")])
    with pytest.raises(UserError, match=r"f: 2 tensors hold NaN or infinity \(b, c\)"):
        require_finite("f", dict(a=largest, b=bad, c=torch.tensor([float("nan")]).half()))


CONFIG = """
model = dict(
    backbone=dict(type='ResNet', depth=18, stages=[dict(a=1), dict(b=(2, 3))]),
    data_preprocessor=dict(mean=[1, 2.5, 3], std=[4, 5, 6], to_rgb=True))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict({'a.b': dict(lr_mult=0.1)})))
frozen = 'stem_and_stage1'
lr = 0.1 * 4
here = __file__
keys = {'x': {'y': None}, 'z': -1}
lr += 1
"""


def test_values_of_a_config_without_running_it():
    values = config_values(CONFIG)
    backbone = dict(type="ResNet", depth=18, stages=[dict(a=1), dict(b=(2, 3))])
    assert values["model"]["backbone"] == backbone
    assert values["optim_wrapper"]["paramwise_cfg"]["custom_keys"] == {"a.b": dict(lr_mult=0.1)}
    assert values["frozen"] == "stem_and_stage1" and values["keys"] == {"x": {"y": None}, "z": -1}
    assert values["lr"] is UNREAD and values["here"] is UNREAD and not UNREAD
    assert Normalisation.in_config(values) == ((1.0, 2.5, 3.0), (4.0, 5.0, 6.0), "RGB")


@pytest.mark.parametrize("text", [None, 3, "", "a b", "x = (" * 500, "(" * 90, b"a = 1"])
def test_what_is_no_config_has_no_values(text):
    assert config_values(text) == {}


def test_stored_normalisation():
    own = dict(mean=[1.0], std=[2.0], channel_order="BGR")
    assert Normalisation.stored(dict(normalisation=own, cfg=CONFIG)) == ((1.0,), (2.0,), "BGR")
    assert Normalisation.stored(dict(cfg=CONFIG)).mean == (1.0, 2.5, 3.0)
    assert Normalisation.stored(dict(config_text=CONFIG)).channel_order == "RGB"
    bgr = "data_preprocessor = dict(mean=[1], std=[1], bgr_to_rgb=False)"
    assert Normalisation.stored(dict(cfg=bgr)) == ((1.0,), (1.0,), "BGR")
    ours = "model = dict(data_preprocessor=dict(type='gersp_mm.X', mean=[1], std=[1]))"
    assert Normalisation.stored(dict(cfg=ours)).channel_order == "RGB"
    unread = "model = dict(data_preprocessor=dict(mean=[x], std=[1]))"
    for meta in (None, {}, dict(cfg="model = dict()"), dict(cfg=unread), dict(normalisation=3)):
        assert Normalisation.stored(meta) is None
