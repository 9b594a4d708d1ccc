# A classifier of plain mmpretrain on the labelled images of $FAULTS_DATA, as small as
# tiny_finetune.py. $FAULTS_WEIGHTS is the backbone that it starts from.
data = "{{$FAULTS_DATA:data}}"
default_scope = "mmpretrain"
model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="ResNet",
        depth=18,
        stem_channels=4,
        base_channels=4,
        init_cfg=dict(
            type="Pretrained", checkpoint="{{$FAULTS_WEIGHTS:weights.pth}}", prefix="backbone."
        ),
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=4, in_channels=32, topk=(1,)),
)
data_preprocessor = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True, num_classes=4
)
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(48, 48)),
    dict(type="PackInputs"),
]
loader = dict(batch_size=8, num_workers=0)
train_dataloader = dict(
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="CustomDataset", data_root=f"{data}/knn/train", pipeline=pipeline),
    **loader,
)
val_dataloader = dict(
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="CustomDataset", data_root=f"{data}/knn/test", pipeline=pipeline),
    **loader,
)
val_evaluator = dict(type="Accuracy", topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4)
)
param_scheduler = [
    dict(type="CosineAnnealingLR", by_epoch=True, T_max=2, convert_to_iter_based=True)
]
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=1), checkpoint=dict(type="CheckpointHook", interval=1)
)
randomness = dict(seed=0)
custom_imports = dict(imports=["step_marker"])
custom_hooks = [dict(type="StepMarkerHook")]
