# Evaluation of frozen features: the training images are the memory, and nothing is trained.
_base_ = "./eurosat.py"

train_dataloader = None
val_dataloader = None
val_evaluator = None
test_cfg = dict(
    type="gersp_mm.FrozenFeaturesLoop", train_ann_file="splits/eurosat-gersp-1/train.txt"
)
