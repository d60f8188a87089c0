# ImageNet, for a GPU. Its training images are sorted by class: none are set aside, and nothing can
# be tuned on it.
_base_ = '../../../configs/_base_/datasets/imagenet_bs64.py'

input_shape = (3, 224, 224)
epochs = 200  # of the dense network, in T, as in the paper

train_dataloader = dict(batch_size=256, num_workers=12, persistent_workers=True, drop_last=True)
