# MoCo-IN: MoCo v1 on the natural images without their labels.
_base_ = "./moco-rs.py"

train_dataloader = dict(
    dataset=dict(remote_sensing=dict(ann_file="mini_{{$GERSP_MINI_SIZE:cpu}}/natural_paths.txt"))
)
default_hooks = dict(export_backbone=dict(method="MoCo-IN"))
