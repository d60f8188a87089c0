_base_ = './stp_transformer_cifar100.py'

# The Swin of Lee et al., "Vision Transformer for Small-Size Datasets" (2021), mlp ratio 2, but for
# the patches: of 4 pixels, as the paper says, where their code has 2. The grids of the stages are
# then 8x8, 4x4 and 2x2, and the last one's window shrinks to its grid, as in the original Swin.
model = dict(
    model=dict(
        backbone=dict(
            type='SwinTransformer',
            arch=dict(embed_dims=96, depths=[2, 6, 4], num_heads=[3, 6, 12]),
            window_size=4,
            stage_cfgs=[
                dict(block_cfgs=dict(ffn_ratio=2)),
                dict(block_cfgs=dict(ffn_ratio=2)),
                dict(block_cfgs=dict(ffn_ratio=2), window_size=2),
            ],
            out_indices=(2,),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', in_channels=384),
    )
)
