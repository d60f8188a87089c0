# The whole detector, backbone, neck and head, at half of its multiply-adds, in one run.
_base_ = './rtmdet_r50-slim_digits.py'

model = dict(
    _delete_=True,  # else the detector's fields would be STP's
    type='mmstp.STP',
    model=_base_.model,
    input_shape=(3, 160, 160),  # for the costs; subnets run at other sizes too
    target=0.5,
    preset='recommended',
)

default_hooks = dict(checkpoint=dict(save_best='subnet/coco/bbox_mAP', rule='greater'))
custom_hooks = [
    dict(type='mmstp.PoolHook'),
    dict(type='mmstp.SubnetEvalHook', num_images=400),
    dict(type='mmstp.EpochSeedHook'),
]
