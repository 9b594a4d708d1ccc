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
    protocol="fine-tuning, 50 epochs, 224 px",
    split="resisc45-gersp-1, test",
    metrics={"accuracy/top1": "top-1"},
)
