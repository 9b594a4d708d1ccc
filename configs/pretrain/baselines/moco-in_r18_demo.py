# MoCo v1 on the natural images of the demo, without their labels.
_base_ = "./moco-maid_r18_demo.py"

train_dataloader = dict(dataset=dict(remote_sensing=dict(ann_file="", data_prefix="natural")))
default_hooks = dict(export_backbone=dict(method="MoCo-IN"))
