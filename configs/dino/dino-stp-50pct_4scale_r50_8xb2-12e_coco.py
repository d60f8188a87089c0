# DINO, the whole of it, at half of its multiply-adds, by mmdet's own schedule.
# Begin with a trained one: --cfg-options model.pretrained=CHECKPOINT model.preset=pretrained
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

custom_imports = dict(imports=['mmstp'], allow_failed_imports=False)

model = dict(
    _delete_=True,  # else the detector's fields would be STP's
    type='mmstp.STP',
    model={
        **_base_.model,
        # batch norm is trained, and over all GPUs: two images are too few
        'backbone': {
            **_base_.model.backbone,
            'frozen_stages': -1,
            'norm_eval': False,
            'norm_cfg': dict(type='SyncBN', requires_grad=True),
        },
    },
    input_shape=(3, 320, 320),  # shares of the costs are nearly the same at every size
    target=0.5,
    preset='recommended',
)

default_hooks = dict(checkpoint=dict(save_best='subnet/coco/bbox_mAP', rule='greater'))
custom_hooks = [
    dict(type='mmstp.PoolHook'),
    dict(type='mmstp.SubnetEvalHook', num_images=1000),
    dict(type='mmstp.EpochSeedHook'),
]
