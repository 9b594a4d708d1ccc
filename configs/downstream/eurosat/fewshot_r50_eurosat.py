# EuroSAT: logistic regression on frozen ResNet-50 features of 1, 5, 10 and 50 training images per
# class, five draws each. Nothing else is trained:
#   python tools/test.py configs/downstream/eurosat/fewshot_r50_eurosat.py BACKBONE.pth
_base_ = [
    "../_base_/models/resnet50_classifier.py",
    "../_base_/datasets/eurosat_frozen.py",
    "../_base_/runtime/mmpretrain.py",
]

model = dict(head=dict(num_classes=10))
test_cfg = dict(fewshot=dict(shots=(1, 5, 10, 50), draws=5))
evaluation = dict(
    dataset="EuroSAT",
    measured_by=dict(kind="fewshot", image=dict(size=64)),
    split="eurosat-gersp-1",
    metrics={
        "fewshot_1/accuracy/top1": dict(name="top-1", shots=1),
        "fewshot_5/accuracy/top1": dict(name="top-1", shots=5),
        "fewshot_10/accuracy/top1": dict(name="top-1", shots=10),
        "fewshot_50/accuracy/top1": dict(name="top-1", shots=50),
    },
)
