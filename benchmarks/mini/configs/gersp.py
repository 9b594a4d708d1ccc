# GeRSP-mini: the recommended recipe (configs/pretrain/gersp_r50.py) at a scale that anyone can
# repeat. ResNet-18, EuroSAT's training images without labels, Tiny-ImageNet with labels. The
# other rows of the study change this file. GERSP_MINI_SIZE chooses cpu (default) or gpu.
#   python tools/train.py benchmarks/mini/configs/gersp.py
_base_ = [
    "../../../configs/pretrain/_base_/models/gersp_resnet50.py",
    "../../../configs/pretrain/_base_/default_runtime.py",
]

data_root = "{{$GERSP_DATA:data}}"
size = "{{$GERSP_MINI_SIZE:cpu}}"
# `images`: number of images of each kind; `natural.txt` has 200 classes. `updates`: number of
# updates of the student, the same in every row.
settings = dict(
    cpu=dict(pixels=32, batch=64, images=9600, updates=600, lr=0.1, queue=4096, workers=0),
    gpu=dict(pixels=64, batch=256, images=16200, updates=12600, lr=0.2, queue=8192, workers=4),
)[size]
pixels, updates = settings["pixels"], settings["updates"]
epochs = updates // (settings["images"] // settings["batch"])
epochs_over_both = epochs // 2  # for the row that reads the images of both kinds
# The released augmentation with milder colours: with the released jitter of 0.4 on
# every property of every view, no row learns in so few updates.
view = dict(
    type="gersp_mm.ViewAugmentation",
    preset="released",
    size=pixels,
    jitter=(0.2, 0.2, 0.2, 0.05),
    grayscale_prob=0.1,
)

model = dict(
    key_bn="none",  # One process; the rows key_bn=... of rows.yml have the other choices.
    queue_len=settings["queue"],
    backbone=dict(depth=18),
    neck=dict(in_channels=512, hid_channels=512),
    natural_head=dict(num_classes=200, in_channels=512),
)
train_dataloader = dict(
    batch_size=settings["batch"],
    num_workers=settings["workers"],
    persistent_workers=settings["workers"] > 0,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="gersp_mm.PairedSampler", epoch_length="longer"),
    collate_fn=dict(type="gersp_mm.collate_pairs"),
    dataset=dict(
        type="gersp_mm.PairedDataset",
        # decoded once, 12 kB each, in every worker; on the GPU, DeviceImagesHook keeps them
        cache_images=40000 if size == "cpu" else 0,
        remote_sensing=dict(
            type="gersp_mm.MillionAID",
            data_root=data_root,
            ann_file=f"mini_{size}/remote_sensing.txt",
        ),
        natural=dict(
            type="gersp_mm.LabelledImages",
            data_root=data_root,
            ann_file=f"mini_{size}/natural.txt",
        ),
        rs_pipeline=[view],
        natural_pipeline=[view],
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="gersp_mm.TrainableParamsConstructor",
    optimizer=dict(type="SGD", lr=settings["lr"], momentum=0.9, weight_decay=5e-4),
)
param_scheduler = [
    dict(type="LinearLR", by_epoch=False, end=updates // 16, start_factor=0.01),
    dict(
        type="CosineAnnealingLR",
        by_epoch=False,
        begin=updates // 16,
        end=updates,
        T_max=updates - updates // 16,
        eta_min=0,
    ),
]
train_cfg = dict(type="gersp_mm.ResumableTrainLoop", max_epochs=epochs)
auto_scale_lr = dict(enable=False, base_batch_size=settings["batch"])
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(max_keep_ckpts=2),
    collapse_monitor=dict(interval=50),
    **(dict(device_images=dict(type="gersp_mm.DeviceImagesHook")) if size == "gpu" else {}),
)
