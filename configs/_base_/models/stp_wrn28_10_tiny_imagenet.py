_base_ = './stp_wrn28_10_cifar100.py'

model = dict(model=dict(head=dict(num_classes=200)), input_shape=(3, 64, 64))
