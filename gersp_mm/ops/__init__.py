"""mmcv's compiled operators, in torch and torchvision, for an mmcv without them."""
