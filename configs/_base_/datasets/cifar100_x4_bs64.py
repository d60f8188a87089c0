# CIFAR-100 at 128 pixels: enlarged after the augmentation.
_base_ = './cifar100_bs64.py'

enlarge = dict(type='Resize', scale=128)
train_pipeline = [*_base_.train_pipeline[:-1], enlarge, _base_.train_pipeline[-1]]
test_pipeline = [enlarge, *_base_.test_pipeline]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
