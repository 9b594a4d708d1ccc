# The released schedule: SGD, cosine from 0.007 to 0.001 within each of five cycles of 20 epochs,
# no warm-up. The paper's schedule was not found. One epoch is one pass over the
# longer of the two data sets: 5,004 steps of 256 pairs with ImageNet and Million-AID.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="gersp_mm.TrainableParamsConstructor",
    optimizer=dict(type="SGD", lr=0.007, momentum=0.9, weight_decay=5e-4),
)
param_scheduler = [
    dict(
        type="CosineRestartLR",
        by_epoch=True,
        periods=[20] * 5,
        restart_weights=[1] * 5,
        eta_min=0.001,
    )
]
train_cfg = dict(type="gersp_mm.ResumableTrainLoop", max_epochs=100)
auto_scale_lr = dict(enable=False, base_batch_size=256)
