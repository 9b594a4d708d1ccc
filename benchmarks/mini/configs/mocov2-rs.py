# MoCov2-RS: MoCo v2 (MLP projector, temperature 0.2, its augmentation) on remote-sensing images.
_base_ = "./gersp.py"

model = dict(head=dict(temperature=0.2), natural_head=None)
train_dataloader = dict(
    dataset=dict(
        natural=None,
        rs_pipeline=[
            dict(
                type="gersp_mm.ViewAugmentation",
                preset="mocov2",
                size={{_base_.settings.pixels}},
            )
        ],
    )
)
default_hooks = dict(export_backbone=dict(method="MoCov2-RS"))
