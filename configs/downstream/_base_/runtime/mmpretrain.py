_base_ = "./common.py"

default_scope = "mmpretrain"
default_hooks = dict(visualization=dict(type="VisualizationHook"))
visualizer = dict(type="UniversalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
