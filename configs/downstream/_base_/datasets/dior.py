# DIOR with horizontal boxes in the released protocol (configs_mmdet/base_settings.py): trained on
# train and val, evaluated on test, 800 px, batches of 4. Evaluated by COCO's metrics; the mAP
# of the paper's tables corresponds to AP50, see docs/guide/downstream.md.
_base_ = ["../classes/dior.py", "./coco_detection.py"]

data_root = "{{$GERSP_DATA:data}}/dior"
data_preparation = "gersp prepare dior data/dior"

train_dataloader = dict(
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=_base_.classes),
        ann_file="coco/trainval.json",
        filter_cfg=dict(min_size=32),
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=_base_.classes),
        ann_file="coco/test.json",
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f"{data_root}/coco/test.json")
test_evaluator = val_evaluator
