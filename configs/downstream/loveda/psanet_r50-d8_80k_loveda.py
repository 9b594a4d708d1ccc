# LoveDA, val: PSANet, ResNet-50 with output stride 8.
# Crop, iterations, learning rate, batch (4 on each of 4 GPUs) and stride were NOT FOUND in the
# paper; the values are mmseg's for LoveDA.
_base_ = [
    "../_base_/models/psanet_r50-d8.py",
    "../_base_/datasets/loveda.py",
    "../_base_/schedules/segmentation_80k.py",
    "../_base_/runtime/mmseg.py",
]

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=8000)
)
log_processor = dict(by_epoch=False)
evaluation = dict(
    dataset="LoveDA",
    measured_by=dict(kind="segmentation", crop=512),
    split=dict(name="official split", part="val"),
    metrics={"mIoU": "mIoU val"},
)
