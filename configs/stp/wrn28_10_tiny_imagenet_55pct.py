_base_ = [
    '../_base_/models/stp_wrn28_10_tiny_imagenet.py',
    '../_base_/datasets/tiny_imagenet_bs128.py',
    '../_base_/schedules/tiny_imagenet_bs128_200e.py',
    '../_base_/default_runtime.py',
]

model = dict(target=0.55)
