"""Constants shared by configs' checks, the data preprocessor and exported weights."""

# ImageNet statistics for RGB images in the value range 0 to 255, the normalisation of the released
# code (configs/selfsup/GeRSP/GeRSP.py gives the same numbers divided by 255).
RGB_MEAN = (123.675, 116.28, 103.53)
RGB_STD = (58.395, 57.12, 57.375)

# The package never feeds images in another channel order to a backbone.
CHANNEL_ORDER = "RGB"

# Defaults of the evaluations of frozen features, as plans, configs, hooks and rows have them.
KNN_K = 20
KNN_TEMPERATURE = 0.07
FEW_SHOT_DRAWS = 5

# The ResNets that checkpoints are converted to, and the names of tensors that are written.
DEPTHS = (18, 34, 50, 101, 152)
RESNETS = tuple(f"resnet{depth}" for depth in DEPTHS)
TARGETS = ("mmlab", "torchvision", "timm")

# Prefix of a student backbone's tensors in checkpoints and exported files.
PREFIX = "backbone."
