# MoCo v2 of plain mmpretrain on the images of $FAULTS_DATA, as small as tiny.py.
_base_ = ["./mmpretrain_base.py"]
data = "{{$FAULTS_DATA:data}}"
model = dict(
    type="MoCo",
    queue_len=16,
    feat_dim=32,
    momentum=0.01,
    data_preprocessor=dict(
        type="SelfSupDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type="ResNet", depth=18, stem_channels=4, base_channels=4, norm_cfg=dict(type="BN")
    ),
    neck=dict(
        type="MoCoV2Neck", in_channels=32, hid_channels=32, out_channels=32, with_avg_pool=True
    ),
    head=dict(type="ContrastiveHead", loss=dict(type="CrossEntropyLoss"), temperature=0.2),
)
view = [
    dict(type="RandomResizedCrop", scale=32, crop_ratio_range=(0.2, 1.0)),
    dict(type="RandomGrayscale", prob=0.2, keep_channels=True),
    dict(type="RandomFlip", prob=0.5),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="CustomDataset",
        data_root=f"{data}/rs",
        with_label=False,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="MultiView", num_views=2, transforms=[view]),
            dict(type="PackInputs"),
        ],
    ),
)
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2)
auto_scale_lr = dict(base_batch_size=4)
