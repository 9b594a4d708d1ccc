# BYOL on Million-AID: mmpretrain's algorithm, its model and its optimizer scaled to batches of 256.
# Not a row of the paper. Both views get MoCo v2's augmentation; BYOL's own treats them differently.
_base_ = "../gersp_r50.py"

model = dict(
    _delete_=True,
    type="BYOL",
    base_momentum=0.01,
    data_preprocessor=dict(type="gersp_mm.TwoViewDataPreprocessor"),
    backbone=dict(type="ResNet", depth=50, norm_cfg=dict(type="SyncBN"), zero_init_residual=False),
    neck=dict(
        type="NonLinearNeck",
        in_channels=2048,
        hid_channels=4096,
        out_channels=256,
        num_layers=2,
        with_bias=True,
        with_last_bn=False,
        with_avg_pool=True,
    ),
    head=dict(
        type="LatentPredictHead",
        predictor=dict(
            type="NonLinearNeck",
            in_channels=256,
            hid_channels=4096,
            out_channels=256,
            num_layers=2,
            with_bias=True,
            with_last_bn=False,
            with_avg_pool=False,
        ),
        loss=dict(type="CosineSimilarityLoss"),
    ),
)
train_dataloader = dict(
    dataset=dict(
        natural=None,
        rs_pipeline=[dict(type="gersp_mm.ViewAugmentation", preset="mocov2", size=224)],
    )
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="LARS", lr=0.3, momentum=0.9, weight_decay=1e-06),
    paramwise_cfg=dict(
        custom_keys={
            "bn": dict(decay_mult=0, lars_exclude=True),
            "bias": dict(decay_mult=0, lars_exclude=True),
            "downsample.1": dict(decay_mult=0, lars_exclude=True),
        }
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-4, by_epoch=True, end=10, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        by_epoch=True,
        begin=10,
        end=100,
        T_max=90,
        convert_to_iter_based=True,
    ),
]
