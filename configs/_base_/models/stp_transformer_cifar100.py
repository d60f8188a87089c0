_base_ = './stp.py'

# What ViT and Swin share. The paper names neither initialisation nor stochastic depth: the one is
# that of mmpretrain's DeiT and Swin, the other is off, for the subnets skip blocks at random
# already.
model = dict(
    model=dict(
        type='ImageClassifier',
        backbone=dict(img_size=32, patch_size=4, drop_path_rate=0.0),
        head=dict(
            num_classes=100,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
            init_cfg=None,  # the classifier's, for the head too
        ),
        init_cfg=[
            dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
        ],
    ),
    input_shape=(3, 32, 32),
)
