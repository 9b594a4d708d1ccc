# DOTA v1.0 with oriented boxes in the field's protocol, as in mmrotate's configs: tiles of
# 1024 px that overlap by 200, trained on train and val together, evaluated by the test server.
# The test images have no public labels: tools/test.py merges the tiles and writes the submission.
# The results are not comparable with the released protocol (dota_released.py).
_base_ = "../classes/dota.py"

data_root = "{{$GERSP_DATA:data}}/dota/tiles_1024_200"
data_preparation = "gersp prepare dota data/dota --protocol field"

train_pipeline = [
    dict(type="mmdet.LoadImageFromFile"),
    dict(type="mmdet.LoadAnnotations", with_bbox=True, box_type="qbox"),
    dict(type="ConvertBoxType", box_type_mapping=dict(gt_bboxes="rbox")),
    dict(type="mmdet.Resize", scale=(1024, 1024), keep_ratio=True),
    dict(type="mmdet.RandomFlip", prob=0.75, direction=["horizontal", "vertical", "diagonal"]),
    dict(type="mmdet.PackDetInputs"),
]
test_pipeline = [
    dict(type="mmdet.LoadImageFromFile"),
    dict(type="mmdet.Resize", scale=(1024, 1024), keep_ratio=True),
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
        metainfo=dict(classes=_base_.classes),
        ann_file="trainval/annfiles",
        data_prefix=dict(img_path="trainval/images"),
        img_suffix="png",
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="DOTADataset",
        data_root=data_root,
        metainfo=dict(classes=_base_.classes),
        data_prefix=dict(img_path="test/images"),
        img_suffix="png",
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(
    type="DOTAMetric", format_only=True, merge_patches=True, outfile_prefix="work_dirs/dota/Task1"
)
submission = dict(kind="dota", only=True)  # the test above is the submission
