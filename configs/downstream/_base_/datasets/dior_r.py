# DIOR-R: DIOR with oriented boxes, trained on train and val, evaluated on test. The released code
# has no oriented detection: data and schedule follow mmrotate's own DIOR configs.
_base_ = "../classes/dior.py"

data_root = "{{$GERSP_DATA:data}}/dior"
data_preparation = "gersp prepare dior data/dior"

# mmrotate draws each class in the colour of its number, and defines only 15 colours
palette = [
    (255, 38, 38),
    (32, 84, 210),
    (107, 166, 25),
    (255, 38, 228),
    (32, 210, 180),
    (166, 101, 25),
    (92, 38, 255),
    (39, 210, 32),
    (166, 25, 72),
    (38, 174, 255),
    (196, 210, 32),
    (136, 25, 166),
    (38, 255, 146),
    (210, 69, 32),
    (25, 37, 166),
    (120, 255, 38),
    (210, 32, 151),
    (25, 160, 166),
    (255, 200, 38),
    (113, 32, 210),
]

train_pipeline = [
    dict(type="mmdet.LoadImageFromFile"),
    dict(type="mmdet.LoadAnnotations", with_bbox=True, box_type="qbox"),
    dict(type="ConvertBoxType", box_type_mapping=dict(gt_bboxes="rbox")),
    dict(type="mmdet.Resize", scale=(800, 800), keep_ratio=True),
    dict(type="mmdet.RandomFlip", prob=0.75, direction=["horizontal", "vertical", "diagonal"]),
    dict(type="mmdet.PackDetInputs"),
]
test_pipeline = [
    dict(type="mmdet.LoadImageFromFile"),
    dict(type="mmdet.Resize", scale=(800, 800), keep_ratio=True),
    dict(type="mmdet.LoadAnnotations", with_bbox=True, box_type="qbox"),
    dict(type="ConvertBoxType", box_type_mapping=dict(gt_bboxes="rbox")),
    dict(
        type="mmdet.PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=None,
    dataset=dict(
        type="DOTADataset",
        data_root=data_root,
        metainfo=dict(classes=_base_.classes, palette=palette),
        ann_file="obb/trainval",
        data_prefix=dict(img_path="JPEGImages-trainval"),
        img_suffix="jpg",
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="DOTADataset",
        data_root=data_root,
        metainfo=dict(classes=_base_.classes, palette=palette),
        ann_file="obb/test",
        data_prefix=dict(img_path="JPEGImages-test"),
        img_suffix="jpg",
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="DOTAMetric", metric="mAP")  # AP50 with 11 points, mmrotate's default
test_evaluator = val_evaluator
val_cfg = dict(type="ValLoop")
