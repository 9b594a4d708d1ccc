# EuroSAT: weighted k nearest neighbours on frozen ResNet-50 features. Nothing is trained:
#   python tools/test.py configs/downstream/eurosat/knn_r50_eurosat.py BACKBONE.pth
_base_ = [
    "../_base_/models/resnet50_classifier.py",
    "../_base_/datasets/eurosat_frozen.py",
    "../_base_/runtime/mmpretrain.py",
]

model = dict(head=dict(num_classes=10))
test_cfg = dict(knn=dict(k=20, temperature=0.07))
evaluation = dict(
    dataset="EuroSAT",
    measured_by=dict(kind="knn", image=dict(size=64)),
    split="eurosat-gersp-1",
    metrics={"knn/accuracy/top1": "top-1"},
)
