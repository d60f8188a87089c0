# The demo: a slim ResNet-50 on scikit-learn's digits, minutes on a CPU, nothing to download.
_base_ = [
    '../_base_/models/stp.py',
    '../_base_/datasets/digits_bs64.py',
    '../_base_/schedules/digits_bs64_24e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    model=dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=50, stem_channels=16, base_channels=16),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=10,
            in_channels=512,
            loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        ),
    ),
    input_shape=(3, 16, 16),
    target=0.15,
    preset='recommended',
)

default_hooks = dict(logger=dict(interval=10))
