_base_ = [
    '../_base_/models/stp_mbv3_cifar100.py',
    '../_base_/datasets/cifar100_x4_bs64.py',
    '../_base_/schedules/cifar100_bs64_500e.py',
    '../_base_/default_runtime.py',
]

model = dict(target=0.35)
