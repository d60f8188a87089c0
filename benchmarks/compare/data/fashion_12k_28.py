# 12,000 images of Fashion-MNIST at their own size, in batches that a GPU wants.
_base_ = '../../../configs/_base_/datasets/fashion_mnist_bs128.py'

input_shape = (1, 28, 28)
epochs = 30  # of the dense network, in T

train_dataloader = dict(
    batch_size=256,
    num_workers=12,
    persistent_workers=True,
    drop_last=True,
    dataset=dict(indices=12000),
)
validation_dataset = dict(
    _base_.train_dataloader.dataset,
    indices=range(50000, 60000),
    pipeline=_base_.test_pipeline,
)
