default_scope = "mmpretrain"
default_hooks = dict(
    runtime_info=dict(type="gersp_mm.DeferredRuntimeInfoHook"),
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    checkpoint=dict(type="gersp_mm.AtomicCheckpointHook", interval=1, max_keep_ckpts=3),
    checkpoint_check=dict(type="gersp_mm.CheckpointCheckHook"),
    preflight=dict(type="gersp_mm.PreflightHook"),
    pixel_scale=dict(type="gersp_mm.PixelScaleHook"),
    # to start from other weights: --cfg-options pretrained=PATH
    pretrained_check=dict(type="gersp_mm.PretrainedCheckHook"),
    rng_state=dict(type="gersp_mm.RNGStateHook"),
    teacher_update=dict(type="gersp_mm.TeacherUpdateHook"),
    export_backbone=dict(type="gersp_mm.ExportBackboneHook"),
    bad_images=dict(type="gersp_mm.BadImageHook", max_share=0.05),
    census=dict(type="gersp_mm.CensusHook"),
    collapse_monitor=dict(type="gersp_mm.CollapseMonitorHook"),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
# Scalars always go to <work_dir>/<time>/vis_data/scalars.json. For more, add one line here, or
# call tools/train.py with --log-to tensorboard, wandb or mlflow:
#   dict(type="TensorboardVisBackend"), dict(type="WandbVisBackend"), dict(type="MLflowVisBackend")
visualizer = dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")])
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=0)
