# EuroSAT: ResNet-50, all layers fine-tuned.
_base_ = [
    "../_base_/models/resnet50_classifier.py",
    "../_base_/datasets/eurosat.py",
    "../_base_/schedules/finetune_classifier.py",
    "../_base_/runtime/mmpretrain.py",
]

model = dict(head=dict(num_classes=10))
evaluation = dict(
    dataset="EuroSAT",
    measured_by=dict(kind="finetune", image=dict(size=64)),
    split="eurosat-gersp-1",
    metrics={"accuracy/top1": "top-1"},
)
