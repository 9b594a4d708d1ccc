# NWPU-RESISC45: linear probe. Weights and BatchNorm statistics of the ResNet-50 do not change.
_base_ = [
    "../_base_/models/resnet50_classifier.py",
    "../_base_/datasets/resisc45.py",
    "../_base_/schedules/linear_probe.py",
    "../_base_/runtime/mmpretrain.py",
]

frozen = "all"
model = dict(backbone=dict(frozen_stages=4), head=dict(num_classes=45))
evaluation = dict(
    dataset="NWPU-RESISC45",
    measured_by=dict(kind="linear", solver="sgd", image=dict(size=224, resize=256)),
    split="resisc45-gersp-1",
    metrics={"accuracy/top1": "top-1"},
)
