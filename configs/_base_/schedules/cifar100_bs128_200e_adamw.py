# The paper's schedule for Swin on CIFAR-100 (Appendix A1). Weight decay is on all parameters, as in
# the code of Lee et al., whose training the paper follows.
_base_ = './cifar100_bs128_200e.py'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.001, weight_decay=0.05),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=10,
        end=200,
        T_max=190,
        convert_to_iter_based=True,
    ),
]
