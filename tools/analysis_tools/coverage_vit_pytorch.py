"""Of every kind of network in vit_pytorch a small one, for `coverage.py`: einops throughout."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from coverage_network import Network
from torch import nn

_VIT = dict(
    image_size=64, patch_size=16, num_classes=10, dim=96, depth=6, heads=4, dim_head=24, mlp_dim=192
)
_SERIES = dict(seq_len=64, patch_size=8, num_classes=10, dim=96, depth=6, heads=4, dim_head=24,
               mlp_dim=192)  # fmt: skip
_VIDEO = dict(image_size=32, image_patch_size=8, frames=4, frame_patch_size=2, num_classes=10,
              dim=96, depth=6, heads=4, dim_head=24, mlp_dim=192)  # fmt: skip
_VIVIT = dict(
    {key: value for key, value in _VIDEO.items() if key != 'depth'},
    spatial_depth=6, temporal_depth=4,
)  # fmt: skip
_ND = dict(ndim=2, input_shape=64, patch_size=16, num_classes=10, dim=96, depth=6, heads=4,
           dim_head=24, mlp_dim=192)  # fmt: skip
_IMAGE, _SMALL, _LARGE = (1, 3, 64, 64), (1, 3, 32, 32), (1, 3, 224, 224)
_CLIP = (1, 3, 4, 32, 32)

# Module, class, arguments, shape of the input.
NETWORKS: tuple[tuple[str, str, dict[str, Any], tuple[int, ...]], ...] = (
    ('ats_vit', 'ViT', dict(_VIT, max_tokens_per_depth=(16, 16, 12, 8, 8, 8)), _IMAGE),
    ('attn_residual_with_dca_simple_vit', 'SimpleViT', _VIT, _IMAGE),
    ('cait', 'CaiT', dict(_VIT, cls_depth=2), _IMAGE),
    ('cct', 'CCT', dict(img_size=64, embedding_dim=96, n_conv_layers=2, kernel_size=3, stride=2,
                        padding=1, num_layers=6, num_heads=4, mlp_ratio=2, num_classes=10,
                        positional_embedding='learnable'), _IMAGE),
    ('cct_3d', 'CCT', dict(img_size=32, num_frames=4, embedding_dim=96, n_conv_layers=2,
                           kernel_size=3, stride=2, padding=1, num_layers=6, num_heads=4,
                           mlp_ratio=2, num_classes=10, positional_embedding='learnable'), _CLIP),
    ('cross_vit', 'CrossViT', dict(image_size=48, num_classes=10, sm_dim=96, lg_dim=128,
                                   sm_enc_mlp_dim=192, lg_enc_mlp_dim=256, sm_enc_dim_head=24,
                                   lg_enc_dim_head=32), (1, 3, 48, 48)),
    ('crossformer', 'CrossFormer', dict(dim=(32, 64, 96, 128), depth=(2, 2, 3, 2),
                                        num_classes=10), _LARGE),
    ('cvt', 'CvT', dict(num_classes=10, s1_emb_dim=32, s2_emb_dim=64, s3_emb_dim=96, s3_depth=3),
     _IMAGE),
    ('deepvit', 'DeepViT', _VIT, _IMAGE),
    ('jet_vit', 'JetViT', dict(_VIT, window_size=2), _IMAGE),
    ('jumbo_vit', 'JumboViT', dict(_VIT, jumbo_cls_k=2), _IMAGE),
    ('learnable_memory_vit', 'ViT', _VIT, _IMAGE),
    ('levit', 'LeViT', dict(image_size=224, num_classes=10, stages=3, dim=(64, 96, 128), depth=3,
                            heads=(2, 3, 4), mlp_mult=2), _LARGE),
    ('look_vit', 'LookViT', dict(dim=96, image_size=96, patch_size=16, highres_patch_size=12,
                                 num_classes=10, depth=3, dim_head=24), (1, 3, 96, 96)),
    ('looped_vit', 'LoopedViT', dict(num_classes=10, dim=96, image_size=64, patch_size=16,
                                     pre_loop_depth=3, num_looped_blocks=2, post_loop_depth=3,
                                     loop_depth=2, heads=4, dim_head=24, mlp_dim=192), _IMAGE),
    ('max_vit', 'MaxViT', dict(num_classes=10, dim=32, depth=(2, 2, 2), dim_head=16,
                               dim_conv_stem=32, window_size=7), _LARGE),
    ('max_vit_with_registers', 'MaxViT', dict(num_classes=10, dim=32, depth=(2, 2, 2), dim_head=16,
                                              dim_conv_stem=32, window_size=7), _LARGE),
    ('mobile_vit', 'MobileViT', dict(
        image_size=(64, 64), dims=[96, 120, 144], num_classes=10,
        channels=[16, 32, 48, 48, 64, 64, 80, 80, 96, 96, 384]), _IMAGE),
    ('mp3', 'ViT', _VIT, _IMAGE),
    ('na_vit', 'NaViT', _VIT, _IMAGE),
    ('nest', 'NesT', dict(image_size=64, patch_size=4, num_classes=10, dim=48, heads=3,
                          num_hierarchies=3, block_repeats=(2, 2, 4)), _IMAGE),
    ('normalized_vit', 'nViT', _VIT, _IMAGE),
    ('parallel_vit', 'ViT', _VIT, _IMAGE),
    ('pit', 'PiT', dict(_VIT, image_size=64, patch_size=8, depth=(2, 3, 2)), _IMAGE),
    ('regionvit', 'RegionViT', dict(dim=(32, 64, 96, 128), depth=(2, 2, 3, 2), num_classes=10),
     _LARGE),
    ('rvt', 'RvT', _VIT, _IMAGE),
    ('scalable_vit', 'ScalableViT', dict(
        num_classes=10, dim=32, heads=(2, 4, 4, 4), depth=(2, 2, 4, 2),
        ssa_dim_key=(16, 16, 16, 16), reduction_factor=(8, 4, 2, 1),
        window_size=(8, 4, None, None)), (1, 3, 128, 128)),
    ('sep_vit', 'SepViT', dict(num_classes=10, dim=32, depth=(2, 2, 3, 2), heads=(1, 2, 4, 8)),
     _LARGE),
    ('simple_flash_attn_vit', 'SimpleViT', _VIT, _IMAGE),
    ('simple_flash_attn_vit_3d', 'SimpleViT', _VIDEO, _CLIP),
    ('simple_uvit', 'SimpleUViT', _VIT, _IMAGE),
    ('simple_vit', 'SimpleViT', _VIT, _IMAGE),
    ('simple_vit_1d', 'SimpleViT', _SERIES, (1, 3, 64)),
    ('simple_vit_3d', 'SimpleViT', _VIDEO, _CLIP),
    ('simple_vit_attn_residual', 'SimpleViTAttnResidual', _VIT, _IMAGE),
    ('simple_vit_orthog_residual_update', 'SimpleViT', _VIT, _IMAGE),
    ('simple_vit_with_fft', 'SimpleViT', dict(_VIT, freq_patch_size=8), _IMAGE),
    ('simple_vit_with_hyper_connections', 'SimpleViT', dict(_VIT, num_residual_streams=4), _IMAGE),
    ('simple_vit_with_patch_dropout', 'SimpleViT', _VIT, _IMAGE),
    ('simple_vit_with_qk_norm', 'SimpleViT', _VIT, _IMAGE),
    ('simple_vit_with_register_tokens', 'SimpleViT', _VIT, _IMAGE),
    ('simple_vit_with_relative_proj_pos_bias', 'SimpleViT', _VIT, _IMAGE),
    ('simple_vit_with_sparse_gating', 'SimpleViTWithSparseGating', _VIT, _IMAGE),
    ('simple_vit_with_specialized_cls', 'SimpleViT', _VIT, _IMAGE),
    ('simple_vit_with_value_residual', 'SimpleViT', _VIT, _IMAGE),
    ('t2t', 'T2TViT', dict(image_size=64, num_classes=10, dim=96, depth=6, heads=4, dim_head=24,
                           mlp_dim=192, t2t_layers=((7, 4), (3, 2))), _IMAGE),
    ('twins_svt', 'TwinsSVT', dict(num_classes=10, s1_emb_dim=32, s2_emb_dim=64, s3_emb_dim=96,
                                   s4_emb_dim=128, s3_depth=2, s4_depth=2), _LARGE),
    ('vat', 'ViT', _VIT, _IMAGE),
    ('vat_siglip', 'SigLIP', dict(image_size=64, patch_size=16, dim=96, depth=6, heads=4,
                                  mlp_dim=192), _IMAGE),
    ('vit', 'ViT', _VIT, _IMAGE),
    ('vit_1d', 'ViT', _SERIES, (1, 3, 64)),
    ('vit_3d', 'ViT', _VIDEO, _CLIP),
    ('vit_5', 'ViT', _VIT, _IMAGE),
    ('vit_detpool', 'ViTDetPool', _VIT, _IMAGE),
    ('vit_for_small_dataset', 'ViT', _VIT, _IMAGE),
    ('vit_nd', 'ViTND', _ND, _IMAGE),
    ('vit_nd_pope', 'ViTND', _ND, _IMAGE),
    ('vit_nd_rotary', 'ViTND', _ND, _IMAGE),
    ('vit_with_decorr', 'ViT', _VIT, _IMAGE),
    ('vit_with_keel_post_ln', 'ViT', _VIT, _IMAGE),
    ('vit_with_patch_dropout', 'ViT', _VIT, _IMAGE),
    ('vit_with_patch_merger', 'ViT', _VIT, _IMAGE),
    ('vivit', 'ViViT', _VIVIT, _CLIP),
    ('vivit_with_moss', 'ViViT', _VIVIT, _CLIP),
    ('wwt', 'WWT', dict(image_size=64, patch_size=16, num_classes=10, dim=96, depth=6, num_slots=8,
                        heads=4, dim_head=24, mlp_dim=192), _IMAGE),
    ('xcit', 'XCiT', dict(_VIT, cls_depth=2), _IMAGE),
)  # fmt: skip

_TRAINS = 'an objective for training a network'
# Modules that make no network of one image alone.
EXCLUDED = {
    **dict.fromkeys(('dino', 'distill', 'es_vit', 'lejepa', 'levjepa', 'levjepa_nd'), _TRAINS),
    **dict.fromkeys(('mae', 'mpp', 'simmim'), _TRAINS),
    'accept_video_wrapper': 'frames one by one through any network',
    'efficient': 'a shell around any transformer',
    'extractor': 'what any network makes inside',
    'local_vit': 'vit_pytorch cannot run it: a LayerNorm over the channels is given (b, c, h, w)',
    'na_vit_nested_tensor': 'its attention is over nested tensors',
    'na_vit_nested_tensor_3d': 'its attention is over nested tensors',
    'recorder': 'what any network makes inside',
    'vaat': 'its networks of images are those of vat; it wants torchaudio',
    'vit_nd_masking': 'a function that makes masks',
}


def networks() -> list[Network]:
    """Those of `NETWORKS`, and the modules that have none, with the reason."""
    import vit_pytorch  # noqa: F401  before any name of it is offered

    measured = [
        Network('vit_pytorch', module, name, functools.partial(_build, module, name, made, shape))
        for module, name, made, shape in NETWORKS
    ]
    left_out = [
        Network('vit_pytorch', module, '', excluded=why) for module, why in EXCLUDED.items()
    ]
    return sorted(measured + left_out, key=lambda network: network.path)


def _build(
    module: str, name: str, options: dict[str, Any], shape: tuple[int, ...]
) -> tuple[nn.Module, Any]:
    made = getattr(importlib.import_module(f'vit_pytorch.{module}'), name)
    image = torch.zeros(shape)
    # a list of groups of images, each group one row of tokens
    return made(**options), ([[image[0]]],) if module == 'na_vit' else image
