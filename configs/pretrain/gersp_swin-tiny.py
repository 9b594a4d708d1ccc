# GeRSP with Swin-T. The paper only uses ResNet-50: optimizer and schedule are our choice, after the
# usual recipes for transformers, and were not tuned.
_base_ = "./gersp_r50.py"

model = dict(
    backbone=dict(
        _delete_=True, type="SwinTransformer", arch="tiny", img_size=224, drop_path_rate=0.1
    ),
    neck=dict(in_channels=768),
    natural_head=dict(in_channels=768),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=10, by_epoch=True, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        T_max=90,
        eta_min=1e-6,
        begin=10,
        end=100,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
