# GeRSP, ResNet-50, with a symmetric contrastive loss: each view is query and key in turn. This is
# our addition, not the paper's. It was better than gersp_r50.py in the study GeRSP-mini
# (docs/results/mini.md: ResNet-18, 600 updates, three seeds) for 1.4 times the time, and was never
# run at this scale.
#   bash tools/dist_train.sh configs/pretrain/gersp_r50_plus.py 8
_base_ = "./gersp_r50.py"

model = dict(symmetric=True)
