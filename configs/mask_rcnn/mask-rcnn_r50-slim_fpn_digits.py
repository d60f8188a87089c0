# The detection demo's dense detector: Mask R-CNN in a quarter of its width, digits as objects.
# Prune its backbone with configs/stp/digits_r50_35pct.py, write the scenes with
# tools/dataset_converters/digits_to_coco.py; `make demo-detection` does all of it.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/datasets/digits_coco.py',
    '../_base_/schedules/digits_detection_8e.py',
]

custom_imports = dict(imports=['mmstp'], allow_failed_imports=False)

model = dict(
    # the normalisation of the digits' classifier
    data_preprocessor=dict(mean=[77.8] * 3, std=[81.2] * 3, bgr_to_rgb=False),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ResNet',
        depth=50,
        stem_channels=16,
        base_channels=16,
        out_indices=(0, 1, 2, 3),
        init_cfg=None,
    ),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=20)),
)

custom_hooks = [dict(type='mmstp.EpochSeedHook')]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1),
)
