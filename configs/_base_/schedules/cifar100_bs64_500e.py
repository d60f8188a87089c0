# The paper's schedule for ResNet-50 and MobileNetV3 on CIFAR-100 (Appendix A1).
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=3e-4),
)
param_scheduler = dict(
    type='CosineAnnealingLR', by_epoch=True, begin=0, end=500, T_max=500, convert_to_iter_based=True
)

train_cfg = dict(by_epoch=True, max_epochs=500, val_interval=5)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=64)
