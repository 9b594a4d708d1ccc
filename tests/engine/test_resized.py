"""Position embeddings of another image size: taken where the host resizes them, else refused."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.utils import resize_pos_embed

from gersp_mm.utils.errors import UserError
from tests.engine.test_pretrained_check import check

SMALL = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
SWIN = dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])


def vit(side: int) -> dict:
    return dict(type="mmpretrain.VisionTransformer", arch=dict(SMALL), img_size=side, patch_size=8)


def swin(side: int, window: int = 2) -> dict:
    return dict(
        type="mmpretrain.SwinTransformer", arch=dict(SWIN), img_size=side, window_size=window,
        use_abs_pos_embed=True,
    )  # fmt: skip


def mmdet_swin(window: int) -> dict:
    return dict(
        type="mmdet.SwinTransformer", embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
        window_size=window,
    )  # fmt: skip


def mmseg_vit(side: int) -> dict:
    return dict(
        type="mmseg.VisionTransformer", img_size=(side, side), patch_size=8, embed_dims=16,
        num_layers=2, num_heads=2, mlp_ratio=2,
    )  # fmt: skip


class Plain(torch.nn.Module):
    """A model of a backbone and a data preprocessor, as far as the check looks at it."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone, self.data_preprocessor = backbone, None

    def init_weights(self) -> None:
        self.backbone.init_weights()


def build(cfg: dict, **init: Any) -> Plain:
    scope = cfg["type"].partition(".")[0]
    import_module(f"{scope}.models")
    init_cfg = dict(init_cfg=dict(type="Pretrained", **init)) if init else {}
    with DefaultScope.overwrite_default_scope(scope):
        return Plain(MODELS.build(Config(dict(cfg, **init_cfg))._cfg_dict))


def stored(cfg: dict, path: Path, prefix: str = "backbone.") -> Path:
    torch.manual_seed(3)
    state = {f"{prefix}{n}": torch.randn_like(t) if t.is_floating_point() else t
             for n, t in build(cfg).backbone.state_dict().items()}  # fmt: skip
    torch.save(dict(state_dict=state, meta={}), path)
    return path


def test_vit_of_mmpretrain(tmp_path):
    path = stored(vit(32), tmp_path / "a.pth")
    model = build(vit(64), checkpoint=str(path), prefix="backbone.")
    note, last = check(model)
    assert note == (
        "model.backbone: pos_embed is resized from (1, 17, 16) to (1, 65, 16) by the host"
    )
    assert last.endswith(f"tensors of model.backbone are those of {path}")
    embedding = torch.load(path)["state_dict"]["backbone.pos_embed"]
    expected = resize_pos_embed(embedding, (4, 4), (8, 8), "bicubic", 1)
    assert torch.equal(model.backbone.pos_embed, expected)
    same = check(build(vit(32), checkpoint=str(path), prefix="backbone."))
    assert len(same) == 1  # nothing is resized


RESIZING = {
    "mmpretrain's Swin": (swin(64), swin(96), "absolute_pos_embed", "backbone."),
    "mmdet's Swin": (mmdet_swin(4), mmdet_swin(7), "relative_position_bias_table", "backbone."),
    "mmseg's ViT": (mmseg_vit(32), mmseg_vit(64), "pos_embed", ""),
}


@pytest.mark.parametrize("case", RESIZING)
def test_other_hosts(case, tmp_path):
    before, after, name, prefix = RESIZING[case]
    path = stored(before, tmp_path / "a.pth", prefix)
    if case == "mmdet's Swin":  # which cannot load another index than its own
        file = torch.load(path)
        kept = {n: t for n, t in file["state_dict"].items() if not n.endswith("position_index")}
        torch.save(dict(file, state_dict=kept), path)
    model = build(after, checkpoint=str(path), **(dict(prefix=prefix) if prefix else {}))
    lines = check(model)
    assert sum(f"{name} is resized from" in line for line in lines) == 1

    def change_embedding(model):
        tensors = [t for n, t in model.backbone.named_parameters() if n.endswith(name)]
        with torch.no_grad():
            tensors[0].view(-1)[0] += 1e-3

    model = build(after, checkpoint=str(path), **(dict(prefix=prefix) if prefix else {}))
    with pytest.raises(UserError, match=name):
        check(model, change_embedding)


def test_a_function_of_the_host_that_does_not_work_is_named(tmp_path, monkeypatch):
    def removed(*args, **kwargs):
        raise NotImplementedError("`interp2d` has been removed in SciPy 1.14.0.\n\nUse another.")

    monkeypatch.setattr("scipy.interpolate.interp2d", removed)
    path = stored(swin(64, 4), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"SwinTransformer cannot .* here \(`interp2d` has been"):
        check(build(swin(64, 2), checkpoint=str(path), prefix="backbone."))


def test_other_tensors_are_compared_exactly(tmp_path):
    path = stored(vit(32), tmp_path / "a.pth")

    def change(model):
        with torch.no_grad():
            model.backbone.cls_token.view(-1)[0] += 1e-3

    with pytest.raises(UserError, match="cls_token"):
        check(build(vit(64), checkpoint=str(path), prefix="backbone."), change)
    wide = dict(vit(64), arch=dict(SMALL, embed_dims=32))
    with pytest.raises(UserError, match="The widths differ"):
        check(build(wide, checkpoint=str(path), prefix="backbone."))


def test_where_the_host_does_not_resize(tmp_path):
    path = stored(vit(32), tmp_path / "a.pth")
    model = build(vit(64), checkpoint=str(path), prefix="backbone.")
    model.backbone._load_state_dict_pre_hooks.clear()  # as a backbone without such a function
    with pytest.raises(UserError, match="pos_embed.*This backbone does not resize them: give it"):
        check(model)
