# Settings that the two configs of plain mmpretrain share.
data = "{{$FAULTS_DATA:data}}"
default_scope = "mmpretrain"
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4)
)
param_scheduler = [
    dict(type="CosineAnnealingLR", by_epoch=True, T_max=2, convert_to_iter_based=True)
]
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=1), checkpoint=dict(type="CheckpointHook", interval=1)
)
randomness = dict(seed=0)
custom_imports = dict(imports=["step_marker"])
custom_hooks = [dict(type="StepMarkerHook")]
