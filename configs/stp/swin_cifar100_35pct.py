_base_ = [
    '../_base_/models/stp_swin_cifar100.py',
    '../_base_/datasets/cifar100_mix_bs128.py',
    '../_base_/schedules/cifar100_bs128_200e_adamw.py',
    '../_base_/default_runtime.py',
]

model = dict(target=0.35)
