# MoCo-IN+RS: MoCo v1 on the images of both kinds, without labels. An epoch is twice as long.
_base_ = "./moco-rs.py"

train_dataloader = dict(
    dataset=dict(remote_sensing=dict(ann_file="mini_{{$GERSP_MINI_SIZE:cpu}}/both.txt"))
)
train_cfg = dict(max_epochs={{_base_.epochs_over_both}})
default_hooks = dict(export_backbone=dict(method="MoCo-IN+RS"))
