# DOTA v1.0, oriented boxes, field's protocol: Rotated Faster R-CNN, angles le90.
_base_ = [
    "../_base_/models/rotated-faster-rcnn_le90_r50_fpn.py",
    "../_base_/datasets/dota_field.py",
    "../_base_/schedules/rotated_1x.py",
    "../_base_/runtime/mmrotate.py",
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=15)))
optim_wrapper = dict(optimizer=dict(lr=0.005))
evaluation = dict(
    dataset="DOTA v1.0",
    measured_by=dict(kind="detection", boxes="oriented", recipe="field", tile=1024, merged=True),
    split=dict(name="official split", train="trainval", part="test server"),
    metrics={},
)
