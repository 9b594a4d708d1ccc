# Supervised pre-training on the demo images, with everything else as in gersp_r18_demo.py.
_base_ = "../gersp_r18_demo.py"

model = dict(neck=None, head=None)
train_dataloader = dict(sampler=dict(epoch_length="natural"), dataset=dict(remote_sensing=None))
default_hooks = dict(export_backbone=dict(method="IMP"))
