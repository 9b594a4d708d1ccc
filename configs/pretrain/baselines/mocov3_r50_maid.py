# MoCo v3 on Million-AID: mmpretrain's algorithm, its model and its optimizer scaled to batches of
# 256. Not a row of the paper. Both views get MoCo v2's augmentation; MoCo v3's own treats them
# differently.
_base_ = "./byol_r50_maid.py"

model = dict(
    _delete_=True,
    type="MoCoV3",
    base_momentum=0.01,
    data_preprocessor=dict(type="gersp_mm.TwoViewDataPreprocessor"),
    backbone=dict(type="ResNet", depth=50, norm_cfg=dict(type="SyncBN"), zero_init_residual=False),
    neck=dict(
        type="NonLinearNeck",
        in_channels=2048,
        hid_channels=4096,
        out_channels=256,
        num_layers=2,
        with_bias=False,
        with_last_bn=True,
        with_last_bn_affine=False,
        with_last_bias=False,
        with_avg_pool=True,
    ),
    head=dict(
        type="MoCoV3Head",
        predictor=dict(
            type="NonLinearNeck",
            in_channels=256,
            hid_channels=4096,
            out_channels=256,
            num_layers=2,
            with_bias=False,
            with_last_bn=False,
            with_last_bn_affine=False,
            with_last_bias=False,
            with_avg_pool=False,
        ),
        loss=dict(type="CrossEntropyLoss", loss_weight=2.0),  # twice the temperature
        temperature=1.0,
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.6))
