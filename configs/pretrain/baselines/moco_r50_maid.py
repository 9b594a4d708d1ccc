# MoCo-MAID: MoCo v1 (linear projector, temperature 0.07, teacher momentum 0.999) on Million-AID,
# which is GeRSP's remote-sensing branch alone, with its augmentation (MoCo v1's) and its schedule.
# An epoch is one pass over Million-AID.
_base_ = "../gersp_r50.py"

model = dict(
    teacher_momentum=0.999,
    neck=dict(
        _delete_=True,
        type="LinearNeck",
        in_channels=2048,
        out_channels=128,
        gap_dim=2,
        norm_cfg=None,
    ),
    natural_head=None,
)
train_dataloader = dict(dataset=dict(natural=None))
default_hooks = dict(export_backbone=dict(method="MoCo-MAID"))
