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
    protocol="fine-tuning, 50 epochs, 64 px",
    split="eurosat-gersp-1, test",
    metrics={"accuracy/top1": "top-1"},
)
