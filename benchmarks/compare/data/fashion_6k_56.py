# The same 6,000 images enlarged to 56x56 pixels of three channels, for networks of many strides.
_base_ = './fashion_6k_14.py'

input_shape = (3, 56, 56)
epochs = 20  # of the dense network, in T

enlarged = [
    dict(type='NumpyToPIL'),
    dict(type='torchvision/Grayscale', num_output_channels=3),
    dict(type='PILToNumpy'),
    dict(type='Resize', scale=56),
]
plain = [*enlarged, dict(type='PackInputs')]

data_preprocessor = dict(mean=[72.940] * 3, std=[90.021] * 3)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            *enlarged,
            dict(type='RandomCrop', crop_size=56, padding=4),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ]
    )
)
validation_dataset = dict(pipeline=plain)
test_dataloader = dict(dataset=dict(pipeline=plain))
