"""No shipped downstream config is refused, with fewer classes and other image sizes neither.

That each starts as it is shipped is shown by ``test_smoke_twin_trains_and_is_tested``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from gersp_mm.datasets import annotations
from gersp_mm.engine.config import apply_switches, read_config
from gersp_mm.engine.preflight.checks import CONFIG_CHECKS
from gersp_mm.engine.preflight.findings import run_checks
from tests.support.downstream import TREES, downstream_configs, downstream_twin
from tests.support.runs import build
from tests.support.smoke import CONFIGS

DIOR = ("airplane", "ship")  # in the file's order
DOTA = ("plane", "small-vehicle")
SUBSETS = {
    "dior/faster-rcnn_r50_fpn_24e_dior.py": DIOR,
    "dior/dyhead_r50_fpn_24e_dior.py": DIOR,
    "dota/retinanet_r50_fpn_24e_dota-released.py": DOTA,
    "loveda/deeplabv3plus_r50-d8_80k_loveda.py": ("water", "road"),
}
SIZES = {
    TREES: 96,
    "dior/retinanet_r50_fpn_24e_dior.py": 160,
    "dota/rotated-faster-rcnn_le90_r50_fpn_1x_dota-field.py": 160,
    "loveda/psanet_r50-d8_80k_loveda.py": 96,
    "eurosat/finetune_r18_eurosat.py": 96,
    "resisc45/linear_r50_resisc45.py": 96,
}


def start(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> str:
    """Do all that a training does before its first step, and return what it logged."""
    cfg.pretrained = None
    apply_switches(cfg)
    runner = build(cfg)
    loop = runner.train_loop
    monkeypatch.setattr(type(loop), "run", lambda self: self.runner.call_hook("before_train"))
    runner.train()
    return "".join(path.read_text() for path in Path(runner.log_dir).glob("*.log"))


@pytest.mark.parametrize("name", [*downstream_configs(), TREES])
def test_options_and_values_of_shipped_configs(name):
    cfg, notes = read_config(CONFIGS / "downstream" / name, ["pretrained=None"])
    assert notes == []
    assert [f.text for f in run_checks(CONFIG_CHECKS, cfg) if f.severity == "error"] == []


@pytest.mark.parametrize("name", SUBSETS)
def test_subsets_of_classes_start(name, downstream_data, tmp_path, monkeypatch):
    monkeypatch.setattr(annotations, "_checked", {})
    cfg = downstream_twin(name, downstream_data, tmp_path)
    for part in ("train", "val", "test"):
        cfg[f"{part}_dataloader"].dataset.metainfo = dict(classes=SUBSETS[name])
    heads = [cfg.model.get(key) for key in ("bbox_head", "decode_head", "auxiliary_head")]
    heads.append((cfg.model.get("roi_head") or {}).get("bbox_head"))
    for head in filter(None, heads):
        head.num_classes = 2
    assert "metainfo.classes leaves out" in start(cfg, monkeypatch)


@pytest.mark.parametrize("name", SIZES)
def test_other_image_sizes_start(name, downstream_data, tmp_path, monkeypatch):
    cfg = downstream_twin(name, downstream_data, tmp_path)
    side = SIZES[name]
    for part in ("train", "val", "test"):
        for step in (cfg.get(f"{part}_dataloader") or {}).get("dataset", {}).get("pipeline", ()):
            if "crop_size" in step:
                step.crop_size = (side, side)
            elif "scale" in step:
                step.scale = side if isinstance(step.scale, int) else (side, side)
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = (side, side)
    start(cfg, monkeypatch)
