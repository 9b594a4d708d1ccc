# The fine-tuning of the study: 50 EuroSAT images per class, all layers, tested on the test split.
#   python tools/train.py benchmarks/mini/configs/finetune.py --cfg-options pretrained=PATH
_base_ = "../../../configs/downstream/eurosat/finetune_r18_eurosat.py"

data_root = "{{$GERSP_DATA:data}}/mini_{{$GERSP_MINI_SIZE:cpu}}"
data_preparation = "python benchmarks/mini/prepare.py"
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    dataset=dict(data_root=data_root, ann_file="eurosat_finetune.txt"),
)
val_dataloader = None
val_cfg = None
val_evaluator = None
test_dataloader = dict(
    batch_size=256,
    num_workers=0,
    dataset=dict(data_root=data_root, ann_file="eurosat_test.txt"),
)
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        by_epoch=True,
        begin=1,
        end=6,
        T_max=5,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=6, val_interval=6)
evaluation = dict(
    measured_by=dict(images_per_class=50),
    split="GeRSP-mini, 3,000 images of eurosat-gersp-1",
)
