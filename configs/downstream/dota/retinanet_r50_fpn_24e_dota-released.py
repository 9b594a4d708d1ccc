# DOTA v1.0, horizontal boxes, released protocol (800 px tiles, not merged): RetinaNet.
_base_ = [
    "../_base_/models/retinanet_r50_fpn.py",
    "../_base_/datasets/dota_released.py",
    "../_base_/schedules/released_24e.py",
    "../_base_/runtime/mmdet.py",
]

model = dict(bbox_head=dict(num_classes=15))
evaluation = dict(
    dataset="DOTA v1.0",
    measured_by=dict(kind="detection", boxes="horizontal", recipe="released", tile=800),
    split=dict(name="official split", part="val"),
    metrics={"coco/bbox_mAP_50": "AP50", "coco/bbox_mAP": "AP50:95"},
)
