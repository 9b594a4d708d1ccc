# BYOL on the demo's remote-sensing images, six epochs at 48 px, as an example and not a recipe.
_base_ = "./byol_r50_maid.py"

data_root = "{{$GERSP_DEMO_DATA:data/demo}}"
model = dict(
    backbone=dict(depth=18),
    neck=dict(in_channels=512, hid_channels=512),
    head=dict(predictor=dict(hid_channels=512)),
)
train_dataloader = dict(
    num_workers=1,
    dataset=dict(
        cache_images=4096,
        remote_sensing=dict(data_root=data_root, ann_file="remote_sensing.txt"),
        rs_pipeline=[dict(type="gersp_mm.ViewAugmentation", preset="mocov2", size=48)],
    ),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=None,
)
param_scheduler = [
    dict(type="CosineAnnealingLR", by_epoch=True, T_max=6, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=6)
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(logger=dict(interval=10))
