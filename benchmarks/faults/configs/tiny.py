# GeRSP in seconds: gersp_r18_demo with a sixteenth of the channels on the images of $FAULTS_DATA.
_base_ = ["../../../configs/pretrain/gersp_r18_demo.py"]
data = "{{$FAULTS_DATA:data}}"
model = dict(
    queue_len=16,
    backbone=dict(depth=18, stem_channels=4, base_channels=4),
    neck=dict(in_channels=32, hid_channels=32),
    natural_head=dict(in_channels=32, num_classes=5),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        cache_images=0,
        remote_sensing=dict(data_root=f"{data}/rs", ann_file=""),
        natural=dict(data_root=f"{data}/natural", ann_file=""),
        rs_pipeline=[dict(type="gersp_mm.ViewAugmentation", preset="mocov2", size=32)],
        natural_pipeline=[dict(type="gersp_mm.ViewAugmentation", preset="released", size=32)],
    ),
)
param_scheduler = [
    dict(type="CosineAnnealingLR", by_epoch=True, T_max=2, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=2)
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(
    logger=dict(interval=1),
    collapse_monitor=dict(interval=2, warmup=6),
    knn_eval=dict(train=f"{data}/knn/train", test=f"{data}/knn/test", interval=1, size=32, k=3),
)
custom_imports = dict(imports=["step_marker"])
custom_hooks = [dict(type="StepMarkerHook")]
