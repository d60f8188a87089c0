# The paper's schedule for ResNet-50 and MobileNetV3 on Tiny ImageNet (Appendix A2).
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=3e-4),
)
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[250, 375], gamma=0.1)

train_cfg = dict(by_epoch=True, max_epochs=500, val_interval=5)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=64)
