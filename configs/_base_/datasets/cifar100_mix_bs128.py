# For ViT and Swin the paper takes the augmentation of Lee et al., "Vision Transformer for Small-
# Size Datasets" (2021).
_base_ = ['./cifar100_bs128.py', '../pipelines/autoaugment_cifar10.py']

# Every other batch is mixed. `probs` could say so too, but mmpretrain appends to that list, so
# that a config could be built only once.
data_preprocessor = dict(
    batch_augments=dict(
        augments=[dict(type='CutMix', alpha=1.0), dict(type='Mixup', alpha=1.0), None, None]
    )
)

train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(type='AutoAugment', policies=_base_.cifar10_policies),
    dict(type='RandomErasing', erase_prob=0.25, fill_color=_base_.data_preprocessor.mean),
    _base_.train_pipeline[-1],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
