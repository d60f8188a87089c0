_base_ = './r18_fashion_mnist_15pct.py'

model = dict(model=dict(backbone=dict(depth=50), head=dict(in_channels=2048)))
