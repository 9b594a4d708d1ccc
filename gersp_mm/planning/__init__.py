"""What fits a number of images and a machine: the settings of a pre-training."""
