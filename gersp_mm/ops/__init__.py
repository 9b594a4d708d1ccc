"""mmcv's compiled operators, written in torch and torchvision for where nobody compiled them."""
