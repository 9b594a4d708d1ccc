# MoCo-IN: MoCo v1 (linear projector, temperature 0.07, teacher momentum 0.999) on ImageNet without
# labels, with GeRSP's remote-sensing branch alone, its augmentation and its schedule.
_base_ = "./moco_r50_maid.py"

train_dataloader = dict(dataset=dict(remote_sensing=dict(data_root="data/ImageNet/train")))
default_hooks = dict(export_backbone=dict(method="MoCo-IN"))
