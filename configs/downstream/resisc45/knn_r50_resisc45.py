# NWPU-RESISC45: weighted k nearest neighbours on frozen ResNet-50 features. Nothing is trained:
#   python tools/test.py configs/downstream/resisc45/knn_r50_resisc45.py BACKBONE.pth
_base_ = [
    "../_base_/models/resnet50_classifier.py",
    "../_base_/datasets/resisc45_frozen.py",
    "../_base_/runtime/mmpretrain.py",
]

model = dict(head=dict(num_classes=45))
test_cfg = dict(knn=dict(k=20, temperature=0.07))
evaluation = dict(
    dataset="NWPU-RESISC45",
    measured_by=dict(kind="knn", image=dict(size=224, resize=256)),
    split="resisc45-gersp-1",
    metrics={"knn/accuracy/top1": "top-1"},
)
