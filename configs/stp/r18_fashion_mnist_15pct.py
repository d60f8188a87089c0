_base_ = [
    '../_base_/models/stp_r18_fashion_mnist.py',
    '../_base_/datasets/fashion_mnist_bs128.py',
    '../_base_/schedules/fashion_mnist_bs128_30e.py',
    '../_base_/default_runtime.py',
]

model = dict(target=0.15)
