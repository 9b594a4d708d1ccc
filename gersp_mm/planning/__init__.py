"""Settings of a pre-training that fit the number of images and the machine."""
