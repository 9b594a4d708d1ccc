# DOTA v1.0 with horizontal boxes in the released protocol (configs_mmdet/base_settings_DOTA.py):
# trained on the tiles of train, evaluated on the tiles of val without merging them. That the tiles
# overlap by 160 px is inferred from the released path's name, dota_1_800_640.
# The results are not comparable with the test server's numbers (dota_field.py).
_base_ = ["../classes/dota.py", "./coco_detection.py"]

data_root = "{{$GERSP_DATA:data}}/dota/tiles_800_160"
data_preparation = "gersp prepare dota data/dota --protocol released"

train_dataloader = dict(
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=_base_.classes),
        ann_file="coco/train.json",
        filter_cfg=dict(min_size=32),
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=_base_.classes),
        ann_file="coco/val.json",
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f"{data_root}/coco/val.json")
test_evaluator = val_evaluator
