# Student, teacher, queue and losses as in the released code (mmselfsup/models/algorithms/
# moco_gersp.py and configs/selfsup/GeRSP/GeRSP.py), with two corrections: the teacher's
# projector is also averaged, and the teacher starts as a copy of the student.
model = dict(
    type="gersp_mm.GeRSP",
    queue_len=65536,
    feat_dim=128,
    teacher_momentum=0.996,  # the paper's, by a secondary source; the released config has 0.999
    alpha=1.0,  # the released default; the paper's value was not found
    joint_forward=True,
    key_bn="auto",
    channels_last=True,
    compile=False,  # True: torch.compile, which starts in minutes and speeds up long runs
    data_preprocessor=dict(
        type="gersp_mm.PairedDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
    ),
    backbone=dict(
        type="ResNet", depth=50, num_stages=4, out_indices=(3,), norm_cfg=dict(type="BN")
    ),
    neck=dict(type="MoCoV2Neck", in_channels=2048, hid_channels=2048, out_channels=128),
    head=dict(type="gersp_mm.InfoNCEHead", temperature=0.07),
    # num_classes: a number, or "auto" to count those of the natural images (1000 for ImageNet)
    natural_head=dict(
        type="LinearClsHead", num_classes="auto", in_channels=2048, topk=(1, 5), cal_acc=True
    ),
)
