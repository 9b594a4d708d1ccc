# Fine-tuning in seconds: finetune_r18_eurosat with a sixteenth of the channels, on $FAULTS_DATA.
_base_ = ["../../../configs/downstream/eurosat/finetune_r18_eurosat.py"]
data = "{{$FAULTS_DATA:data}}"
names = dict(classes=("coast", "field", "forest", "town"))
model = dict(
    backbone=dict(stem_channels=4, base_channels=4), head=dict(in_channels=32, num_classes=4)
)
loader = dict(batch_size=8, num_workers=0, persistent_workers=False)
train_dataloader = dict(
    dataset=dict(data_root=f"{data}/knn", ann_file="train.txt", metainfo=names), **loader
)
val_dataloader = dict(
    dataset=dict(data_root=f"{data}/knn", ann_file="test.txt", metainfo=names), **loader
)
test_dataloader = dict(
    dataset=dict(data_root=f"{data}/knn", ann_file="test.txt", metainfo=names), **loader
)
param_scheduler = [
    dict(type="CosineAnnealingLR", by_epoch=True, T_max=2, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=2)
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(logger=dict(interval=1))
evaluation = dict(measured_by=dict(image=dict(size=48)), split="own lists")
custom_imports = dict(imports=["step_marker"])
custom_hooks = [dict(type="StepMarkerHook")]
