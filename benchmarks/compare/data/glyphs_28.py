# 14,600 images of a hundred classes, drawn by tools/dataset_converters/fonts_to_images.py.
_base_ = '../../../configs/_base_/datasets/glyphs_bs64.py'

input_shape = (1, 28, 28)
epochs = 18  # of the dense network, in T: 4,086 steps

train_dataloader = dict(drop_last=True)
# typefaces of other families than those of the training and of the test images
validation_dataset = dict(_base_.test_dataloader.dataset, data_prefix='validation')
