# mmpretrain's ResNet-50 classifier (configs/_base_/models/resnet50.py) on a GeRSP backbone.
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
    ),
    backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(3,),
        frozen_stages=-1,
        style="pytorch",
        init_cfg=dict(
            type="Pretrained", checkpoint="{{$GERSP_CHECKPOINT:not-given}}", prefix="backbone."
        ),
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        in_channels=2048,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
        topk=(1,),
    ),
)
