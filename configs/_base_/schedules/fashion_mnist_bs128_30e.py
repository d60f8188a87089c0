# A usual schedule for residual networks on small images; the paper has no Fashion-MNIST.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
)
param_scheduler = dict(
    type='CosineAnnealingLR', by_epoch=True, begin=0, end=30, T_max=30, convert_to_iter_based=True
)

train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=5)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=128)
