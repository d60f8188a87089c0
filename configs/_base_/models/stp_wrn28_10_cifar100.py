_base_ = './stp.py'

model = dict(
    model=dict(
        type='ImageClassifier',
        backbone=dict(type='mmstp.WideResNet', depth=28, widen_factor=10),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=100,
            in_channels=640,
            loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
            topk=(1, 5),
        ),
    ),
    input_shape=(3, 32, 32),
)
