# GeRSP with ViT-S/16. The paper only uses ResNet-50: optimizer and schedule are our choice, after
# the usual recipes for transformers, and were not tuned.
_base_ = "./gersp_swin-tiny.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="VisionTransformer",
        arch="deit-small",
        img_size=224,
        patch_size=16,
        out_type="avg_featmap",
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=384, with_avg_pool=False),
    natural_head=dict(in_channels=384),
)
