# Common part of all downstream runs. One of these has to give the weights that a run starts from:
#   --cfg-options pretrained=PATH   or   GERSP_CHECKPOINT=PATH in the environment
#   --cfg-options pretrained=None   for a start from scratch
# and the part of the backbone that is frozen:
#   --cfg-options frozen=stem_and_stage1   as the released ImageNet baselines had it
#   --cfg-options frozen=none              as the released GeRSP runs had it
pretrained = "{{$GERSP_CHECKPOINT:not-given}}"
frozen = "none"

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="gersp_mm.AtomicCheckpointHook", interval=1, max_keep_ckpts=2),
    # stops at once if a checkpoint to resume is of another run; keeps NaN out of checkpoints
    checkpoint_check=dict(type="gersp_mm.CheckpointCheckHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    # stops at once if config, data and model do not fit each other
    preflight=dict(type="gersp_mm.PreflightHook"),
    # stops at once unless all of the backbone came from the file, normalisation included
    pretrained_check=dict(type="gersp_mm.PretrainedCheckHook"),
    # stops at once if a file's classes are not the config's
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
