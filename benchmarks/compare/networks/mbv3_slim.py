# MobileNetV3 small, whose strides want images of 56 pixels and three channels.
_base_ = './r18_slim.py'

in_channels = 3  # there is no option for it

model = dict(
    backbone=dict(_delete_=True, type='MobileNetV3', arch='small'),
    head=dict(
        _delete_=True,
        type='StackedLinearClsHead',
        in_channels=576,
        mid_channels=[256],
        act_cfg=dict(type='HSwish'),
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        init_cfg=dict(type='Normal', layer='Linear', mean=0.0, std=0.01, bias=0.0),
    ),
)
