_base_ = [
    '../_base_/models/stp_r50_imagenet.py',
    '../_base_/datasets/imagenet_bs64.py',
    '../_base_/schedules/imagenet_bs512_200e.py',
    '../_base_/default_runtime.py',
]

model = dict(target=0.35)
