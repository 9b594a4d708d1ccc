# GeRSP on the demo images of `python demo/prepare_demo.py`: ResNet-18, 48 px, a few minutes on two
# CPU cores. A demonstration of the method, not a recipe: every value here is our choice for some
# 2,000 tiles, many of which overlap. Compared with the recommended recipe, the queue is short (a
# long queue would hold the query's own neighbours), the temperature is higher, the teacher faster,
# and the augmentation mild, because these places differ mainly in colour.
_base_ = [
    "./_base_/models/gersp_resnet50.py",
    "./_base_/default_runtime.py",
]

data_root = "{{$GERSP_DEMO_DATA:data/demo}}"

model = dict(
    queue_len=512,
    teacher_momentum=0.99,
    backbone=dict(depth=18),
    neck=dict(in_channels=512, hid_channels=512),
    head=dict(temperature=0.1),
    natural_head=dict(in_channels=512),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="gersp_mm.PairedSampler", epoch_length="remote_sensing"),
    collate_fn=dict(type="gersp_mm.collate_pairs"),
    dataset=dict(
        type="gersp_mm.PairedDataset",
        cache_images=4096,  # all images, some 45 MB
        remote_sensing=dict(
            type="gersp_mm.MillionAID", data_root=data_root, ann_file="remote_sensing.txt"
        ),
        natural=dict(type="gersp_mm.LabelledImages", data_root=data_root, ann_file="natural.txt"),
        rs_pipeline=[
            dict(
                type="gersp_mm.ViewAugmentation",
                preset="mocov2",
                size=48,
                scale=(0.4, 1.0),
                jitter=(0.2, 0.2, 0.2, 0.05),
                grayscale_prob=0.1,
                blur_prob=0.0,
                vertical_flip_prob=0.5,
            )
        ],
        natural_pipeline=[dict(type="gersp_mm.ViewAugmentation", preset="released", size=48)],
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="gersp_mm.TrainableParamsConstructor",
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4),
)
param_scheduler = [
    dict(type="LinearLR", by_epoch=True, end=1, start_factor=0.01, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        by_epoch=True,
        begin=1,
        end=6,
        T_max=5,
        eta_min=0.001,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type="gersp_mm.ResumableTrainLoop", max_epochs=6)
auto_scale_lr = dict(enable=False, base_batch_size=32)
default_hooks = dict(
    logger=dict(interval=10),
    collapse_monitor=dict(interval=20),
    knn_eval=dict(
        type="gersp_mm.KNNEvalHook",
        train=f"{data_root}/sites_train.txt",
        test=f"{data_root}/sites_test.txt",
        interval=3,
        size=64,
    ),
)
