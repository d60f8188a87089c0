# A dense detector of digits, minutes on a CPU: RTMDet's neck and head on a ResNet-50, in a quarter
# of their widths. tools/dataset_converters/digits_to_coco.py writes the scenes.
_base_ = [
    'mmdet::_base_/default_runtime.py',
    '../_base_/datasets/digits_coco.py',
    '../_base_/schedules/digits_detection_8e.py',
]

custom_imports = dict(imports=['mmstp'], allow_failed_imports=False)

norm_cfg = dict(type='BN')
act_cfg = dict(type='SiLU', inplace=True)
model = dict(
    type='RTMDet',
    # the normalisation of the digits' classifier
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[77.8] * 3,
        std=[81.2] * 3,
        bgr_to_rgb=False,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='mmpretrain.ResNet',
        depth=50,
        stem_channels=16,
        base_channels=16,
        out_indices=(1, 2, 3),
        init_cfg=None,
    ),
    neck=dict(
        type='CSPNeXtPAFPN',
        in_channels=[128, 256, 512],
        out_channels=64,
        num_csp_blocks=1,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg,
    ),
    bbox_head=dict(
        type='RTMDetSepBNHead',
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        with_objectness=False,
        exp_on_reg=False,
        share_conv=True,
        pred_kernel_size=1,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg,
    ),
    train_cfg=dict(
        assigner=dict(type='DynamicSoftLabelAssigner', topk=13), allowed_border=-1, pos_weight=-1
    ),
    test_cfg=dict(
        nms_pre=300,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.65),
        max_per_img=20,
    ),
)

# boxes alone: its assigner takes no masks
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(160, 160), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric=['bbox'])
test_evaluator = val_evaluator

custom_hooks = [dict(type='mmstp.EpochSeedHook')]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1),
)
