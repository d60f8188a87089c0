# Table 6 of the paper, 15 % of the FLOPs. First prune, then export to where the base file lies:
#   python tools/train.py configs/stp/r50_15pct.py
#   python tools/export.py configs/stp/r50_15pct.py work_dirs/r50_15pct/epoch_200.pth \
#       --out work_dirs/r50_15pct/export
_base_ = [
    './mask-rcnn_r50_fpn_1x_coco.py',
    '../../work_dirs/r50_15pct/export/backbone.py',
]

custom_imports = dict(imports=['mmstp'], allow_failed_imports=False)

model = dict(
    data_preprocessor=_base_.compact_preprocessor,
    backbone=dict(_delete_=True, **_base_.compact_backbone, frozen_stages=1, norm_eval=True),
    neck=dict(in_channels=_base_.compact_channels),
)
