_base_ = './stp_transformer_cifar100.py'

# The ViT of Lee et al., "Vision Transformer for Small-Size Datasets" (2021): heads of 16 channels,
# mlp ratio 2.
model = dict(
    model=dict(
        backbone=dict(
            type='VisionTransformer',
            arch=dict(embed_dims=192, num_layers=9, num_heads=12, feedforward_channels=384),
            qkv_bias=False,
        ),
        head=dict(type='VisionTransformerClsHead', in_channels=192),
    ),
    # The paper does not say how a ViT's one run of blocks is cut into stages.
    space=dict(cut=3),
)
