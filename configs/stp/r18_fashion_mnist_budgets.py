_base_ = './r18_fashion_mnist_15pct.py'

# Three budgets in one run; their subnets are trained in the main network to the end.
model = dict(target=[0.15, 0.35, 0.55], survivor=False)
