# NWPU-RESISC45: logistic regression on frozen ResNet-50 features of 1, 5, 10 and 50 training
# images per class, five draws each. Nothing else is trained:
#   python tools/test.py configs/downstream/resisc45/fewshot_r50_resisc45.py BACKBONE.pth
_base_ = [
    "../_base_/models/resnet50_classifier.py",
    "../_base_/datasets/resisc45_frozen.py",
    "../_base_/runtime/mmpretrain.py",
]

model = dict(head=dict(num_classes=45))
test_cfg = dict(fewshot=dict(shots=(1, 5, 10, 50), draws=5))
evaluation = dict(
    dataset="NWPU-RESISC45",
    measured_by=dict(kind="fewshot", image=dict(size=224, resize=256)),
    split="resisc45-gersp-1",
    metrics={
        "fewshot_1/accuracy/top1": dict(name="top-1", shots=1),
        "fewshot_5/accuracy/top1": dict(name="top-1", shots=5),
        "fewshot_10/accuracy/top1": dict(name="top-1", shots=10),
        "fewshot_50/accuracy/top1": dict(name="top-1", shots=50),
    },
)
