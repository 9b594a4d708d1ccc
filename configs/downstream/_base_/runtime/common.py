# Common part of all downstream runs. One of these options has to give the initial weights:
#   --cfg-options pretrained=PATH   or   GERSP_CHECKPOINT=PATH in the environment
#   --cfg-options pretrained=None   for a start from scratch
# One of these options freezes a part of the backbone:
#   --cfg-options frozen=stem_and_stage1   as in the released ImageNet baselines
#   --cfg-options frozen=none              as in the released GeRSP runs
pretrained = "{{$GERSP_CHECKPOINT:not-given}}"
frozen = "none"

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="gersp_mm.AtomicCheckpointHook", interval=1, max_keep_ckpts=2),
    # stops at once if a checkpoint to resume belongs to another run; keeps NaN out of checkpoints
    checkpoint_check=dict(type="gersp_mm.CheckpointCheckHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    # stops at once if config, data and model do not fit together
    preflight=dict(type="gersp_mm.PreflightHook"),
    # stops at once unless the whole backbone and its normalisation came from the file
    pretrained_check=dict(type="gersp_mm.PretrainedCheckHook"),
    # stops at once if the classes of a file differ from those of the config
    class_check=dict(type="gersp_mm.ClassCheckHook"),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=0)
