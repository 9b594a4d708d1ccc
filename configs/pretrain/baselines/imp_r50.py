# IMP: supervised pre-training on ImageNet, GeRSP's natural-image branch alone, with its data, its
# augmentation and its schedule. The paper's IMP weights are probably torchvision's
# (docs/guide/checkpoints.md), which were trained in another way.
_base_ = "../gersp_r50.py"

model = dict(neck=None, head=None)
train_dataloader = dict(dataset=dict(remote_sensing=None))
default_hooks = dict(export_backbone=dict(method="IMP"))
