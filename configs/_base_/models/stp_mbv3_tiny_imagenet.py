_base_ = './stp_mbv3_cifar100.py'

# Enlarged four times here too: 8x8 for the last stage, as in ResNet-50.
model = dict(model=dict(head=dict(num_classes=200)), input_shape=(3, 256, 256))
