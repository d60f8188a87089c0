# mmdet's config with the ResNet-50 of 35 % of the FLOPs as backbone; the classifier's normalisation
# of images takes the place of the caffe weights'. tools/export.py writes the base file, see
# configs/mask_rcnn/mask-rcnn_r50-stp-35pct_fpn_1x_coco.py.
_base_ = [
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    '../../work_dirs/r50_35pct/export/backbone.py',
]

custom_imports = dict(imports=['mmstp'], allow_failed_imports=False)

model = dict(
    data_preprocessor=_base_.compact_preprocessor,
    backbone=dict(_delete_=True, **_base_.compact_backbone, frozen_stages=1, norm_eval=True),
    neck=dict(in_channels=_base_.compact_channels),
)
