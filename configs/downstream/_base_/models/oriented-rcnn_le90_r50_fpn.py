# mmrotate's oriented-rcnn-le90_r50_fpn_1x_dota without frozen stages.
_base_ = "./rotated_rpn.py"

model = dict(
    rpn_head=dict(
        type="OrientedRPNHead",
        bbox_coder=dict(
            type="MidpointOffsetCoder",
            angle_version="le90",
            target_means=[0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            target_stds=[1.0, 1.0, 1.0, 1.0, 0.5, 0.5],
        ),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            type="RotatedSingleRoIExtractor",
            roi_layer=dict(type="RoIAlignRotated", out_size=7, sample_num=2, clockwise=True),
        ),
        bbox_head=dict(
            bbox_coder=dict(type="DeltaXYWHTRBBoxCoder", norm_factor=None, proj_xy=True)
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms=dict(iou_threshold=0.8)),
        rcnn=dict(assigner=dict(iou_calculator=dict(type="RBboxOverlaps2D"))),
    ),
    test_cfg=dict(rpn=dict(nms=dict(iou_threshold=0.8))),
)
