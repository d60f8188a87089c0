# Tiny ImageNet at 256 pixels: enlarged after the augmentation.
_base_ = './tiny_imagenet_bs64.py'

enlarge = dict(type='Resize', scale=256)
train_pipeline = [*_base_.train_pipeline[:-1], enlarge, _base_.train_pipeline[-1]]
test_pipeline = [*_base_.test_pipeline[:-1], enlarge, _base_.test_pipeline[-1]]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
