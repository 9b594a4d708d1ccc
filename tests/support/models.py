"""A GeRSP small enough to be checked by hand."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.structures import DataSample

from gersp_mm import GeRSP

CLASSES, FEAT_DIM, QUEUE_LEN = 5, 8, 20


# Changes to the model below whose backbone has half of its layers, for what each layer costs.
TWO_STAGES: dict[str, Any] = dict(
    backbone=dict(
        type="ResNet", depth=18, stem_channels=8, base_channels=8, out_indices=(1,),
        num_stages=2, strides=(1, 2), dilations=(1, 1),
    ),
    neck=dict(type="MoCoV2Neck", in_channels=16, hid_channels=16, out_channels=FEAT_DIM),
    natural_head=dict(type="LinearClsHead", num_classes=CLASSES, in_channels=16, topk=(1,)),
)  # fmt: skip


def tiny_gersp(**changes: Any) -> GeRSP:
    """Build a ResNet-18 GeRSP with a queue of 20 keys of dimension 8 and 5 natural classes."""
    cfg: dict[str, Any] = dict(
        backbone=dict(type="ResNet", depth=18, base_channels=8, out_indices=(3,)),
        neck=dict(type="MoCoV2Neck", in_channels=64, hid_channels=16, out_channels=FEAT_DIM),
        head=dict(type="gersp_mm.InfoNCEHead", temperature=0.1),
        natural_head=dict(
            type="LinearClsHead", num_classes=CLASSES, in_channels=64, topk=(1,), cal_acc=True
        ),
        queue_len=QUEUE_LEN,
        feat_dim=FEAT_DIM,
    )
    cfg.update(changes)
    model = GeRSP(**cfg)
    # The block-closing BatchNorms start at zero, which would hide most of the backbone.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    if model.teacher is not None:
        model.teacher.copy_from(model.backbone, model.neck)
    return model.train()


def batch(
    rs: int = 4, natural: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Make the arguments of ``GeRSP.loss``: normalised images of 16×16 and labels."""
    generator = torch.Generator().manual_seed(seed)

    def images(count: int) -> torch.Tensor:
        return torch.randn(count, 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.randint(CLASSES, (natural,), generator=generator).tolist()
    return dict(
        inputs=dict(rs_query=images(rs), rs_key=images(rs), natural=images(natural)),
        data_samples=[DataSample().set_gt_label(label) for label in labels],
    )


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum what MMEngine sums: every entry with "loss" in its name."""
    return sum(value for name, value in losses.items() if "loss" in name)
