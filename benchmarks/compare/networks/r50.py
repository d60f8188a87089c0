# ResNet-50 for small images at its full width.
_base_ = './r50_slim.py'

model = dict(
    backbone=dict(stem_channels=64, base_channels=64),
    head=dict(in_channels=2048),
)
space = dict(divisor=8)
optimizer = dict(lr=0.1)
