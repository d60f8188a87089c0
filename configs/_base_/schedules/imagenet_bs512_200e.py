# The paper's schedule for ResNet-50 on ImageNet (Appendix A3).
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4),
)
param_scheduler = dict(
    type='CosineAnnealingLR', by_epoch=True, begin=0, end=200, T_max=200, convert_to_iter_based=True
)

train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=512)  # 8 GPUs with 64 images each
