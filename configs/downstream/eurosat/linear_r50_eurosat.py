# EuroSAT: linear probe. Weights and BatchNorm statistics of the ResNet-50 do not change.
_base_ = [
    "../_base_/models/resnet50_classifier.py",
    "../_base_/datasets/eurosat.py",
    "../_base_/schedules/linear_probe.py",
    "../_base_/runtime/mmpretrain.py",
]

frozen = "all"
model = dict(backbone=dict(frozen_stages=4), head=dict(num_classes=10))
evaluation = dict(
    dataset="EuroSAT",
    measured_by=dict(kind="linear", solver="sgd", image=dict(size=64)),
    split="eurosat-gersp-1",
    metrics={"accuracy/top1": "top-1"},
)
