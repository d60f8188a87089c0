# A ViT of nine blocks for images of 14 pixels: 49 patches of two pixels.
_base_ = './r18_slim.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(embed_dims=48, num_layers=9, num_heads=4, feedforward_channels=96),
        img_size=14,
        patch_size=2,
        qkv_bias=False,
    ),
    neck=None,
    head=dict(type='VisionTransformerClsHead', in_channels=48),
    init_cfg=[
        dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ],
)
space = dict(cut=3)
optimizer = dict(_delete_=True, type='AdamW', lr=0.001, weight_decay=0.05)
# those of `swin_slim`: none were tried
tuned = {
    'dense:plain': dict(lr=1.0),
    'stp:paper': dict(lr=1.0),
    'rst-s:paper': dict(lr=1.0, l2=6.0),
}
