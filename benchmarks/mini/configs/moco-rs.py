# MoCo-RS: MoCo v1 (linear projector) on the remote-sensing images only.
_base_ = "./gersp.py"

model = dict(
    neck=dict(
        _delete_=True,
        type="LinearNeck",
        in_channels=512,
        out_channels=128,
        gap_dim=2,
        norm_cfg=None,
    ),
    natural_head=None,
)
train_dataloader = dict(dataset=dict(natural=None))
default_hooks = dict(export_backbone=dict(method="MoCo-RS"))
