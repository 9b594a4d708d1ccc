# A classifier of plain mmpretrain on the labelled images of $FAULTS_DATA, as small as
# tiny_finetune.py. $FAULTS_WEIGHTS is the backbone that it starts from.
_base_ = ["./mmpretrain_base.py"]
data = "{{$FAULTS_DATA:data}}"
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
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=8)
