# MoCo v2 on the demo images, with everything else as in gersp_r18_demo.py.
_base_ = "../gersp_r18_demo.py"

model = dict(head=dict(temperature=0.2), natural_head=None)
train_dataloader = dict(dataset=dict(natural=None))
default_hooks = dict(export_backbone=dict(method="MoCov2"))
