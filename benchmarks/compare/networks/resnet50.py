# ResNet-50 for the images of ImageNet.
_base_ = './r50.py'

model = dict(backbone=dict(_delete_=True, type='ResNet', depth=50))
