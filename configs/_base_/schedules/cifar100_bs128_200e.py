# The paper's schedule for WRN-28-10 on CIFAR-100 (Appendix A1).
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
)
param_scheduler = dict(
    type='CosineAnnealingLR', by_epoch=True, begin=0, end=200, T_max=200, convert_to_iter_based=True
)

train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=5)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=128)
