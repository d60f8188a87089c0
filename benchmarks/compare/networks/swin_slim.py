# A Swin of twelve blocks, as in the paper: 14 pixels, grids of 7x7, 4x4 and 2x2 patches.
_base_ = './r18_slim.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        arch=dict(embed_dims=32, depths=[2, 6, 4], num_heads=[2, 4, 8]),
        img_size=14,
        patch_size=2,
        window_size=4,
        stage_cfgs=[
            dict(block_cfgs=dict(ffn_ratio=2)),
            dict(block_cfgs=dict(ffn_ratio=2)),
            dict(block_cfgs=dict(ffn_ratio=2), window_size=2),
        ],
        out_indices=(2,),
        drop_path_rate=0.0,
    ),
    init_cfg=[
        dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ],
)
optimizer = dict(_delete_=True, type='AdamW', lr=0.001, weight_decay=0.05)
tuned = {
    'dense:plain': dict(lr=1.0),
    'stp:paper': dict(lr=1.0),
    'rst-s:paper': dict(lr=1.0, l2=6.0),
}
