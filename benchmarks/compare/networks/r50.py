# ResNet-50 for small images at its full width. Input channels and classes are the data's.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=50),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
space = dict(widths=(0.3, 0.5, 0.7, 0.9, 1.0), divisor=8)
optimizer = dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
