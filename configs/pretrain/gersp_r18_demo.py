# GeRSP on the demo images of `python demo/prepare_demo.py`: ResNet-18, 64 px, a few minutes on two
# CPU cores. A demonstration of the method, not a recipe; every value here is our choice.
_base_ = [
    "./_base_/models/gersp_resnet50.py",
    "./_base_/default_runtime.py",
]

data_root = "{{$GERSP_DEMO_DATA:data/demo}}"

model = dict(
    queue_len=2048,
    backbone=dict(depth=18),
    neck=dict(in_channels=512, hid_channels=512),
    natural_head=dict(in_channels=512),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="gersp_mm.PairedSampler", epoch_length="remote_sensing"),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="gersp_mm.PairedDataset",
        remote_sensing=dict(
            type="gersp_mm.MillionAID", data_root=data_root, ann_file="remote_sensing.txt"
        ),
        natural=dict(type="CustomDataset", data_root=data_root, ann_file="natural.txt"),
        rs_pipeline=[dict(type="gersp_mm.ViewAugmentation", preset="mocov2", size=64)],
        natural_pipeline=[dict(type="gersp_mm.ViewAugmentation", preset="released", size=64)],
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="gersp_mm.TrainableParamsConstructor",
    optimizer=dict(type="SGD", lr=0.03, momentum=0.9, weight_decay=5e-4),
)
param_scheduler = [
    dict(
        type="CosineAnnealingLR", by_epoch=True, T_max=10, eta_min=0.001, convert_to_iter_based=True
    )
]
train_cfg = dict(type="gersp_mm.ResumableTrainLoop", max_epochs=10)
auto_scale_lr = dict(enable=False, base_batch_size=32)
default_hooks = dict(
    logger=dict(interval=10),
    collapse_monitor=dict(interval=20),
)
