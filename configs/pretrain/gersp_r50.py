# GeRSP, ResNet-50, 100 epochs: the recommended recipe: teacher momentum 0.996, the other
# hyper-parameters of the released code, and its mistakes corrected (docs/guide/differences.md).
#   bash tools/dist_train.sh configs/pretrain/gersp_r50.py 8
_base_ = [
    "./_base_/models/gersp_resnet50.py",
    "./_base_/datasets/imagenet_million-aid.py",
    "./_base_/schedules/released_100e.py",
    "./_base_/default_runtime.py",
]
