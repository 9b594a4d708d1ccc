# tiny.py in which the gradients of the last step become NaN.
_base_ = ["./tiny.py"]
custom_hooks = [dict(type="StepMarkerHook"), dict(type="NaNGradientHook", step=12)]
