data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=10,
    mean=[77.8] * 3,  # of the training images at 16x16
    std=[81.2] * 3,
    to_rgb=False,
)

# 8x8 pixels would leave one in the last stage. No flip: a mirrored digit is not a digit.
train_pipeline = [
    dict(type='Resize', scale=16),
    dict(type='RandomCrop', crop_size=16, padding=2),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=16),
    dict(type='PackInputs'),
]

# The images are in memory: a worker process would cost more than it saves.
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    drop_last=True,  # the rest would be a batch of 8
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='mmstp.Digits', split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmstp.Digits', split='test', pipeline=test_pipeline),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
