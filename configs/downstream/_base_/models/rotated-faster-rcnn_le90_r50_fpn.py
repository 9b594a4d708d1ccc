# mmrotate's rotated-faster-rcnn-le90_r50_fpn_1x_dota without frozen stages.
_base_ = "./rotated_rpn.py"

model = dict(
    rpn_head=dict(
        type="mmdet.RPNHead",
        bbox_coder=dict(
            type="DeltaXYWHHBBoxCoder",
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[1.0, 1.0, 1.0, 1.0],
            use_box_type=True,
        ),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            type="mmdet.SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
        ),
        bbox_head=dict(bbox_coder=dict(type="DeltaXYWHTHBBoxCoder", norm_factor=2)),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms=dict(iou_threshold=0.7)),
        rcnn=dict(assigner=dict(iou_calculator=dict(type="RBbox2HBboxOverlaps2D"))),
    ),
    test_cfg=dict(rpn=dict(nms=dict(iou_threshold=0.7))),
)
