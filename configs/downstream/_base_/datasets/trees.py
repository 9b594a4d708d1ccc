# Tree crowns of the annotated demo scenes: tiles of about 200 px (20 m) with up to twenty trees.
# Train and test tiles come from separate areas, see demo/README.md.
_base_ = "./coco_detection.py"

data_root = "{{$GERSP_DATA:data}}/demo"
data_preparation = "python demo/prepare_demo.py && python demo/cut_trees.py data/demo"
classes = ("tree",)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.75, direction=["horizontal", "vertical", "diagonal"]),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale_factor=1.0),
    *_base_.test_pipeline[2:],
]
# tools/test.py --tta: each image and its mirror image
tta_model = dict(tta_cfg=dict(max_per_img=100))
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale_factor=1.0)],
            *_base_.tta_pipeline[1].transforms[1:],
        ],
    ),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file="trees/coco/train.json",
        data_prefix=dict(img="trees/"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file="trees/coco/test.json",
        data_prefix=dict(img="trees/"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f"{data_root}/trees/coco/test.json")
test_evaluator = val_evaluator
