# The behaviour of the released code, including its mistakes, for comparison with gersp_r50.py.
# docs/guide/differences.md explains each of these lines.
_base_ = "./gersp_r50.py"

model = dict(
    teacher_momentum=0.999,
    key_bn="shuffle",
    teacher_init="separate",
    teacher_projector="frozen",
    natural_head=dict(init_cfg=None),  # PyTorch's own initialisation of a linear layer
)
train_dataloader = dict(sampler=dict(pairing="locked"))
default_hooks = dict(teacher_update=dict(timing="before_forward"))
