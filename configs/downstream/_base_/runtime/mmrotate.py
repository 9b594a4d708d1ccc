_base_ = "./common.py"

default_scope = "mmrotate"
default_hooks = dict(visualization=dict(type="mmdet.DetVisualizationHook"))
visualizer = dict(
    type="RotLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer"
)
