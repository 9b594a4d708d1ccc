# MoCov2: MoCo v2 (MLP projector, temperature 0.2, teacher momentum 0.999, its augmentation) on
# Million-AID, with GeRSP's schedule. The paper's settings for this row were NOT FOUND.
_base_ = "../gersp_r50.py"

model = dict(teacher_momentum=0.999, head=dict(temperature=0.2), natural_head=None)
train_dataloader = dict(
    dataset=dict(
        natural=None,
        rs_pipeline=[dict(type="gersp_mm.ViewAugmentation", preset="mocov2", size=224)],
    )
)
default_hooks = dict(export_backbone=dict(method="MoCov2"))
