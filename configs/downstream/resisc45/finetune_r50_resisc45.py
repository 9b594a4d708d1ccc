# NWPU-RESISC45: ResNet-50, all layers fine-tuned.
_base_ = [
    "../_base_/models/resnet50_classifier.py",
    "../_base_/datasets/resisc45.py",
    "../_base_/schedules/finetune_classifier.py",
    "../_base_/runtime/mmpretrain.py",
]

model = dict(head=dict(num_classes=45))
evaluation = dict(
    dataset="NWPU-RESISC45",
    measured_by=dict(kind="finetune", image=dict(size=224, resize=256)),
    split="resisc45-gersp-1",
    metrics={"accuracy/top1": "top-1"},
)
