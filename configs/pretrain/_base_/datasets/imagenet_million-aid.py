# ImageNet (1,281,167 labelled images) paired with Million-AID's test split (990,848 images without
# labels). Own images: any folder of images, and any folder with one sub-folder per class.
#   --cfg-options train_dataloader.dataset.remote_sensing.data_root=/my/images \
#       train_dataloader.dataset.natural.data_root=/my/classes
train_dataloader = dict(
    batch_size=32,  # pairs per process; 8 processes give the released batch of 256
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="gersp_mm.PairedSampler", pairing="independent"),
    collate_fn=dict(type="gersp_mm.collate_pairs"),
    dataset=dict(
        type="gersp_mm.PairedDataset",
        remote_sensing=dict(type="gersp_mm.MillionAID", data_root="data/million_aid/test"),
        # The labels number the sorted folders: for ImageNet the usual 0 to 999.
        natural=dict(type="gersp_mm.LabelledImages", data_root="data/ImageNet/train"),
        # preset: "released" (both branches of the released code), "mocov2" or "overhead"
        rs_pipeline=[dict(type="gersp_mm.ViewAugmentation", preset="released", size=224)],
        natural_pipeline=[dict(type="gersp_mm.ViewAugmentation", preset="released", size=224)],
    ),
)
