"""Time the operators of gersp_mm.ops and mmcv's compiled ones, alone and in training steps.

Both take turns in one process, which needs an mmcv with compiled operators.

Examples:
  python benchmarks/ops/run.py                          # operators at sizes of a detector
  python benchmarks/ops/run.py --steps --rounds 3       # whole steps of the downstream configs
  python benchmarks/ops/run.py --only nms_rotated --rounds 20
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from gersp_mm.utils.arguments import new_parser

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "speed"))

from timing import (  # noqa: E402
    add_arguments,
    interleave,
    paired_ratio,
    print_table,
    quiet,
    record,
    spreads,
)

from gersp_mm.ops.install import is_compiled  # noqa: E402
from gersp_mm.ops.swap import our_operators  # noqa: E402
from gersp_mm.utils.errors import listed  # noqa: E402

STEPS = {
    "Faster R-CNN": "dior/faster-rcnn_r50_fpn_24e_dior.py",
    "RetinaNet": "dior/retinanet_r50_fpn_24e_dior.py",
    "DyHead": "dior/dyhead_r50_fpn_24e_dior.py",
    "PSANet": "loveda/psanet_r50-d8_80k_loveda.py",
    "DeepLabV3+": "loveda/deeplabv3plus_r50-d8_80k_loveda.py",
    "rotated RetinaNet": "dior/rotated-retinanet_le90_r50_fpn_1x_dior-r.py",
    "rotated Faster R-CNN": "dior/rotated-faster-rcnn_le90_r50_fpn_1x_dior-r.py",
    "Oriented R-CNN": "dior/oriented-rcnn_le90_r50_fpn_1x_dior-r.py",
}
SIDES = {"mmdet": 800, "mmrotate": 800, "mmseg": 512}  # px
OBJECTS = 20  # objects in the image of a step

Case = Callable[[], Any]


def upright(count: int, span: float, low: float, high: float) -> Tensor:
    """Return random boxes by their corners."""
    corner = torch.rand(count, 2) * (span - low)
    return torch.cat([corner, (corner + low + torch.rand(count, 2) * (high - low))], 1)


def rotated(count: int, span: float, low: float, high: float) -> Tensor:
    """Return random boxes by centre, sides and angle."""
    sides = low + torch.rand(count, 2) * (high - low)
    return torch.cat(
        [torch.rand(count, 2) * span, sides, (torch.rand(count, 1) - 0.5) * math.pi], 1
    )


def forward_and_backward(function: Callable[..., Tensor], *tensors: Tensor) -> Case:
    """Return a call of an operator with the gradients of all floating-point tensors."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    gradient = torch.ones_like(function(*leaves))

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        function(*leaves).backward(gradient)

    return call


def operators() -> dict[str, Case]:
    """Return calls of every operator, at the sizes of a detector or a segmenter."""
    ops = import_module("mmcv.ops")
    torch.manual_seed(0)
    boxes, scores = upright(2000, 800, 10, 200), torch.rand(2000)
    few, crowded = rotated(2000, 1024, 10, 80), rotated(2000, 200, 10, 80)
    anchors, objects = rotated(20_000, 1024, 8, 256), rotated(OBJECTS, 1024, 10, 200)
    features = torch.randn(1, 256, 100, 100)
    rois = torch.cat([torch.zeros(256, 1), upright(256, 800, 10, 200)], 1)
    turned = torch.cat([torch.zeros(256, 1), rotated(256, 800, 10, 200)], 1)
    attention = torch.randn(1, 97 * 97, 48, 48)
    x, weight, bias = torch.randn(1, 256, 50, 50), torch.randn(256, 256, 3, 3), torch.randn(256)
    offset, mask = torch.randn(1, 18, 50, 50), torch.rand(1, 9, 50, 50)

    def box_table() -> Tensor:
        return ops.box_iou_rotated(anchors, objects)

    return {
        "nms, 2,000 boxes": lambda: ops.nms(boxes, scores, 0.7),
        "soft_nms, 500 boxes": lambda: ops.soft_nms(boxes[:500], scores[:500], 0.3, min_score=0.05),
        "nms_rotated, 2,000 boxes": lambda: ops.nms_rotated(few, scores, 0.1),
        "nms_rotated, 2,000 crowded boxes": lambda: ops.nms_rotated(crowded, scores, 0.1),
        f"box_iou_rotated, 20,000 × {OBJECTS}": box_table,
        "roi_align, 256 regions, with gradient": forward_and_backward(
            lambda f: ops.roi_align(f, rois, 7, 0.125, 0, "avg", True), features
        ),
        "roi_align_rotated, 256 regions, with gradient": forward_and_backward(
            lambda f: ops.roi_align_rotated(f, turned, 7, 0.125, 2, True, True), features
        ),
        "modulated_deform_conv2d, 256 × 50 × 50, with gradient": forward_and_backward(
            lambda *t: ops.modulated_deform_conv2d(*t, 1, 1, 1, 1, 1), x, offset, mask, weight, bias
        ),
        "psa_mask, 48 × 48, with gradient": forward_and_backward(
            lambda a: sys.modules["mmcv.ops.psa_mask"].psa_mask(a, 0, (97, 97)), attention
        ),
    }  # fmt: skip


def sample(cfg: Config, side: int) -> Any:
    """Return the annotation of a random image."""
    from mmengine.structures import InstanceData, PixelData

    shape = (side, side)
    meta = dict(img_shape=shape, pad_shape=shape, ori_shape=shape, batch_input_shape=shape,
                scale_factor=(1.0, 1.0), img_id=0, img_path="")  # fmt: skip
    if cfg.default_scope == "mmseg":
        structure = import_module("mmseg.structures").SegDataSample(metainfo=meta)
        structure.gt_sem_seg = PixelData(data=torch.randint(0, 7, (1, *shape)))
        return structure
    structure = import_module("mmdet.structures").DetDataSample(metainfo=meta)
    if cfg.default_scope == "mmrotate":
        boxes = import_module("mmrotate.structures.bbox").RotatedBoxes(
            rotated(OBJECTS, side, 20, 150)
        )
    else:
        boxes = upright(OBJECTS, side, 20, 150).clamp(max=side)
    labels = torch.randint(0, len(cfg.classes), (OBJECTS,))
    structure.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    structure.ignored_instances = InstanceData(bboxes=boxes[:0], labels=labels[:0])
    return structure


def step(name: str) -> Case:
    """Return one training step of a downstream config without its optimizer, on one image."""
    os.environ.setdefault("GERSP_CHECKPOINT", "none")
    cfg = Config.fromfile(ROOT / "configs" / "downstream" / STEPS[name])
    cfg.model.backbone.pop("init_cfg", None)
    for part in ("backbone", "decode_head", "auxiliary_head"):  # BatchNorm needs two images
        if cfg.model.get(part) and cfg.default_scope == "mmseg":
            cfg.model[part].norm_cfg = dict(type="GN", num_groups=8)
    import_module(f"{cfg.default_scope}.models")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
    model.train()
    side = SIDES[cfg.default_scope]
    images, annotation = torch.randn(1, 3, side, side), sample(cfg, side)

    def call() -> None:
        torch.manual_seed(0)  # The same proposals are drawn every time.
        model.zero_grad(set_to_none=True)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            loss, _ = model.parse_losses(model.loss(images, [annotation]))
            loss.backward()

    return call


def compare(name: str, case: Case, args: argparse.Namespace) -> list[Any]:
    """Time both sets of operators in turns and return a row of the table."""

    def within(context: Callable[[], Any]) -> Case:
        def call() -> None:
            with context():
                case()

        return call

    contenders = {"compiled": within(nullcontext), "ours": within(our_operators)}
    times = interleave(contenders, args.rounds, args.warmup)
    ratio = paired_ratio(times, "ours", "compiled")
    values = spreads(times)
    record(
        args,
        name,
        {f"{key}_ms": value for key, value in values.items()},
        {"ours / compiled": ratio},
    )
    quartiles = f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"
    row = [name, values["compiled"]["min"], values["ours"]["min"], quartiles]
    print(*row, sep=", ", flush=True, file=sys.stderr)  # A long run may be stopped early.
    return row


def main() -> None:
    """Run the script."""
    parser = new_parser(__doc__)
    parser.add_argument("--steps", action="store_true", help="time whole training steps")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="run only cases whose names contain one of these"
    )
    add_arguments(parser, rounds=10)
    args = parser.parse_args()
    if not is_compiled():
        parser.error("This mmcv has no compiled operators (mmcv._ext) to compare with.")
    quiet()
    if args.threads:
        torch.set_num_threads(args.threads)
    makers = {name: (lambda n=name: step(n)) for name in STEPS}
    if not args.steps:
        makers = {name: (lambda c=case: c) for name, case in operators().items()}
    if nothing := [p for p in args.only if not any(p.lower() in n.lower() for n in makers)]:
        parser.error(f"--only {listed(nothing)}: choose from {'; '.join(makers)}")
    rows = [
        compare(name, make(), args)
        for name, make in makers.items()
        if any(part.lower() in name.lower() for part in args.only)
    ]
    header = ["", "compiled, ms (least)", "ours, ms (least)", "ours / compiled, of each round"]
    print_table("Operators" if not args.steps else "Training steps", header, rows)


if __name__ == "__main__":
    main()
