_base_ = [
    '../_base_/models/stp_r18_fashion_mnist.py',
    '../_base_/datasets/fashion_mnist_bs128.py',
    '../_base_/schedules/fashion_mnist_bs128_30e.py',
    '../_base_/default_runtime.py',
]

model = dict(target=0.15)

# A list is replaced as a whole, so the hooks of default_runtime.py are repeated.
custom_hooks = [
    dict(type='mmstp.PoolHook', end=0.3),
    dict(type='mmstp.SubnetEvalHook', num_images=2000),
    dict(type='mmstp.EpochSeedHook'),
]
