# The backbone of the detection demo: a slim ResNet-50 with its own stem (strides 4, 8, 16, 32),
# pruned to 35 % on the digits of scikit-learn at 32x32.
_base_ = './digits.py'

model = dict(
    model=dict(
        backbone=dict(_delete_=True, type='ResNet', depth=50, stem_channels=16, base_channels=16),
    ),
    input_shape=(3, 32, 32),
    target=0.35,
)

train_pipeline = [
    dict(type='Resize', scale=32),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=32),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
