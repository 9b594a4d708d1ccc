# DIOR-R, oriented boxes: Rotated Faster R-CNN, angles le90.
_base_ = [
    "../_base_/models/rotated-faster-rcnn_le90_r50_fpn.py",
    "../_base_/datasets/dior_r.py",
    "../_base_/schedules/rotated_1x.py",
    "../_base_/runtime/mmrotate.py",
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=20)))
optim_wrapper = dict(optimizer=dict(lr=0.005))
evaluation = dict(
    dataset="DIOR-R",
    measured_by=dict(kind="detection", boxes="oriented", recipe="field"),
    split=dict(name="official split", train="trainval"),
    metrics={"dota/AP50": "AP50 (11 points)"},
)
