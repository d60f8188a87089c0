# A dense detector of digits, minutes on a CPU: RetinaNet in a quarter of its width, without the two
# levels for large objects. tools/dataset_converters/digits_to_coco.py writes the scenes.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
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
    # norms in neck and head: without them eight epochs are too few (6 AP instead of 56)
    neck=dict(
        in_channels=[64, 128, 256, 512],
        out_channels=64,
        add_extra_convs=False,
        num_outs=3,
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(octave_base_scale=2, strides=[8, 16, 32]),
    ),
    test_cfg=dict(nms_pre=300, max_per_img=20),
)

# boxes alone
val_evaluator = dict(metric=['bbox'])
test_evaluator = val_evaluator

custom_hooks = [dict(type='mmstp.EpochSeedHook')]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1),
)
