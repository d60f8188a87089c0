# ResNet-50 with a quarter of the channels. Input channels and classes are the data's.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=50, stem_channels=16, base_channels=16),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        in_channels=512,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
space = dict(widths=(0.3, 0.5, 0.7, 0.9, 1.0), divisor=4)
optimizer = dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
