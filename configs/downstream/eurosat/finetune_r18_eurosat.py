# EuroSAT: ResNet-18, fine-tuned for three epochs, in some minutes on two CPU cores.
_base_ = "./finetune_r50_eurosat.py"

model = dict(backbone=dict(depth=18), head=dict(in_channels=512))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR", by_epoch=True, begin=1, end=3, T_max=2, convert_to_iter_based=True
    ),
]
train_cfg = dict(max_epochs=3, val_interval=1)
