# IMP: supervised pre-training on the natural images only.
_base_ = "./gersp.py"

model = dict(neck=None, head=None)
train_dataloader = dict(dataset=dict(remote_sensing=None))
default_hooks = dict(export_backbone=dict(method="IMP"))
