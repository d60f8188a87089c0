_base_ = './r18_fashion_mnist_15pct.py'

# Three budgets in one run; what is left of each is trained alone, all on the same batches.
model = dict(target=[0.15, 0.35, 0.55])
