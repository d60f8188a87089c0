# CIFAR-100, for a GPU. A tenth of the training images are set aside, which are in no order.
_base_ = '../../../configs/_base_/datasets/cifar100_bs128.py'

input_shape = (3, 32, 32)
epochs = 200  # of the dense network, in T; the paper's ResNet-50 and MobileNetV3 have 500

train_dataloader = dict(drop_last=True, dataset=dict(indices=range(45000)))
validation_dataset = dict(
    _base_.train_dataloader.dataset, indices=range(45000, 50000), pipeline=_base_.test_pipeline
)
