# Tiny ImageNet, for a GPU. Its training images are sorted by class: none are set aside, and nothing
# can be tuned on it.
_base_ = '../../../configs/_base_/datasets/tiny_imagenet_bs128.py'

input_shape = (3, 64, 64)
epochs = 200  # of the dense network, in T; the paper's ResNet-50 and MobileNetV3 have 500

train_dataloader = dict(drop_last=True)
