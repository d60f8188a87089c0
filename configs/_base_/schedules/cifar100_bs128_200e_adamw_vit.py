# The paper's schedule for ViT on CIFAR-100 (Appendix A1): Swin's, but for the learning rate.
_base_ = './cifar100_bs128_200e_adamw.py'

optim_wrapper = dict(optimizer=dict(lr=0.003))
