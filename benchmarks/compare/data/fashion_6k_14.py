# 6,000 images of Fashion-MNIST at 14x14 pixels: a run takes minutes on one core.
_base_ = '../../../configs/_base_/datasets/fashion_mnist_bs128.py'

input_shape = (1, 14, 14)
epochs = 40  # of the dense network, in T

half = dict(type='Resize', scale=14)
augmented = [
    half,
    dict(type='RandomCrop', crop_size=14, padding=1),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
plain = [half, dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=64, drop_last=True, dataset=dict(indices=6000, pipeline=augmented)
)
# hyper-parameters are chosen on images that are trained on by nobody, and never on the test images
validation_dataset = dict(
    _base_.train_dataloader.dataset, indices=range(50000, 60000), pipeline=plain
)
test_dataloader = dict(dataset=dict(pipeline=plain))
