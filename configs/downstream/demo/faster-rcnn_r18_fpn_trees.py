# Tree crowns of the demo scenes: Faster R-CNN, ResNet-18, minutes on two CPU cores.
_base_ = [
    "../_base_/models/faster-rcnn_r50_fpn.py",
    "../_base_/datasets/trees.py",
    "../_base_/runtime/mmdet.py",
]

# Neck and heads are lighter than for DIOR. BatchNorm learns its statistics; otherwise a backbone
# at random initialisation would keep mean 0 and variance 1.
model = dict(
    backbone=dict(depth=18, norm_eval=False),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=1),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200), rcnn=dict(max_per_img=100)),
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR", by_epoch=True, begin=1, end=3, T_max=2, convert_to_iter_based=True
    ),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=3, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(logger=dict(interval=10))
auto_scale_lr = dict(enable=False, base_batch_size=2)
evaluation = dict(
    dataset="NEON demo trees",
    measured_by=dict(kind="detection", boxes="horizontal", recipe="demo"),
    model="faster-rcnn_r18_fpn",
    split=dict(name="demo areas"),
    metrics={"coco/bbox_mAP_50": "AP50", "coco/bbox_mAP": "AP50:95"},
)
