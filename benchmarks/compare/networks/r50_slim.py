# ResNet-50 with a quarter of the channels.
_base_ = './r18_slim.py'

model = dict(backbone=dict(depth=50), head=dict(in_channels=512))
