_base_ = './stp.py'

# The paper leaves the stem open. ImageNet's (stride 4) would leave one pixel of 32 to the last
# stage; this one, 3x3 with stride 1, is the usual one at this size.
model = dict(
    model=dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=50),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=100,
            in_channels=2048,
            loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
            topk=(1, 5),
        ),
    ),
    input_shape=(3, 32, 32),
)
