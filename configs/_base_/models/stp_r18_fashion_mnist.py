_base_ = './stp.py'

# Not the paper's options: those that make the most of tens of epochs (docs/prune.md).
model = dict(
    model=dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=18, in_channels=1),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=10,
            in_channels=512,
            loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        ),
    ),
    input_shape=(1, 28, 28),
    preset='recommended',
)
