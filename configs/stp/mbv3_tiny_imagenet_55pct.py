_base_ = [
    '../_base_/models/stp_mbv3_tiny_imagenet.py',
    '../_base_/datasets/tiny_imagenet_x4_bs64.py',
    '../_base_/schedules/tiny_imagenet_bs64_500e.py',
    '../_base_/default_runtime.py',
]

model = dict(target=0.55)
