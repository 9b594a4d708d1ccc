# DIOR, horizontal boxes, released protocol: RetinaNet.
_base_ = [
    "../_base_/models/retinanet_r50_fpn.py",
    "../_base_/datasets/dior.py",
    "../_base_/schedules/released_24e.py",
    "../_base_/runtime/mmdet.py",
]

model = dict(bbox_head=dict(num_classes=20))
evaluation = dict(
    dataset="DIOR",
    measured_by=dict(kind="detection", boxes="horizontal", recipe="released"),
    split=dict(name="official split", train="trainval"),
    metrics={"coco/bbox_mAP_50": "AP50", "coco/bbox_mAP": "AP50:95"},
)
