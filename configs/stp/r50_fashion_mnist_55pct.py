_base_ = './r50_fashion_mnist_15pct.py'

model = dict(target=0.55)
