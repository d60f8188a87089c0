# The wide ResNet's blocks, 16 layers deep and not widened: a network of minutes.
_base_ = './r18_slim.py'

model = dict(
    backbone=dict(
        _delete_=True, type='mmstp.WideResNet', depth=16, widen_factor=1, out_indices=(2,)
    ),
    head=dict(in_channels=64),
)
