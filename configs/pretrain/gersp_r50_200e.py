# GeRSP-200: ten cosine cycles of 20 epochs instead of five. How the paper's 200-epoch model was
# trained (in one run or continued, and with which schedule) was not found; the released
# schedule ends at epoch 100.
_base_ = "./gersp_r50.py"

param_scheduler = [
    dict(
        type="CosineRestartLR",
        by_epoch=True,
        periods=[20] * 10,
        restart_weights=[1] * 10,
        eta_min=0.001,
    )
]
train_cfg = dict(max_epochs=200)
