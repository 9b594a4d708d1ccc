# MoCo v1 on the natural and the remote-sensing images of the demo together, without labels.
_base_ = "./moco-maid_r18_demo.py"

data_root = "{{$GERSP_DEMO_DATA:data/demo}}"
train_dataloader = dict(
    dataset=dict(
        remote_sensing=dict(
            _delete_=True,
            type="ConcatDataset",
            datasets=[
                dict(type="gersp_mm.MillionAID", data_root=data_root, data_prefix="natural"),
                dict(
                    type="gersp_mm.MillionAID", data_root=data_root, ann_file="remote_sensing.txt"
                ),
            ],
        )
    )
)
default_hooks = dict(export_backbone=dict(method="MoCo-IN-MAID"))
