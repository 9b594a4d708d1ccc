# SimSiam on Million-AID: mmpretrain's algorithm with its model and optimizer; the predictor's
# learning rate stays constant. Not a row of the paper.
_base_ = "../gersp_r50.py"

model = dict(
    _delete_=True,
    type="SimSiam",
    data_preprocessor=dict(type="gersp_mm.TwoViewDataPreprocessor"),
    backbone=dict(type="ResNet", depth=50, norm_cfg=dict(type="SyncBN"), zero_init_residual=True),
    neck=dict(
        type="NonLinearNeck",
        in_channels=2048,
        hid_channels=2048,
        out_channels=2048,
        num_layers=3,
        with_last_bn_affine=False,
        with_avg_pool=True,
    ),
    head=dict(
        type="LatentPredictHead",
        loss=dict(type="CosineSimilarityLoss"),
        predictor=dict(
            type="NonLinearNeck",
            in_channels=2048,
            hid_channels=512,
            out_channels=2048,
            with_avg_pool=False,
            with_last_bn=False,
            with_last_bias=True,
        ),
    ),
)
train_dataloader = dict(
    dataset=dict(
        natural=None,
        rs_pipeline=[dict(type="gersp_mm.ViewAugmentation", preset="mocov2", size=224)],
    )
)
optim_wrapper = dict(
    optimizer=dict(lr=0.05, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={"predictor": dict(fix_lr=True)}),
)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=100, by_epoch=True, begin=0, end=100)]
custom_hooks = [dict(type="SimSiamHook", priority="HIGH", fix_pred_lr=True, lr=0.05)]
