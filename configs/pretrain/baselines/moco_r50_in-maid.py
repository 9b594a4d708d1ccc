# MoCo-IN-MAID: MoCo v1 on the images of ImageNet and Million-AID together, without labels. How the
# paper trained it (on both at once, or on one after the other) was NOT FOUND: both at once is our
# choice.
_base_ = "./moco_r50_maid.py"

train_dataloader = dict(
    dataset=dict(
        remote_sensing=dict(
            _delete_=True,
            type="ConcatDataset",
            datasets=[
                dict(type="gersp_mm.MillionAID", data_root="data/ImageNet/train"),
                dict(type="gersp_mm.MillionAID", data_root="data/million_aid/test"),
            ],
        )
    )
)
default_hooks = dict(export_backbone=dict(method="MoCo-IN-MAID"))
