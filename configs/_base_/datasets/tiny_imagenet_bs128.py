_base_ = './tiny_imagenet_bs64.py'

train_dataloader = dict(batch_size=128)
