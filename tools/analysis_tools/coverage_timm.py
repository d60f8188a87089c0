"""Of every module of timm the smallest network, for `coverage.py`."""

from __future__ import annotations

import functools
import warnings

import torch
from coverage_network import Network
from torch import Tensor, nn

# The first of every module has the fewest parameters of ``timm.list_models(module=...)``
# in timm 1.0.31, each built on the meta device, less its fixtures ``test_*``. Further ones are of
# another kind.
NAMES: dict[str, tuple[str, ...]] = {
    'beit': ('beit_base_patch16_224',),
    'byoanet': ('halonet_h1', 'eca_botnext26ts_256', 'lambda_resnet26t'),
    'byobnet': ('mobileone_s1', 'gernet_s', 'repvgg_a0'),
    'cait': ('cait_xxs24_224',),
    'coat': ('coat_tiny',),
    'convit': ('convit_tiny',),
    'convmixer': ('convmixer_768_32',),
    'convnext': ('convnext_zepto_rms',),
    'cpubone': ('cpubone_nano',),
    'crossvit': ('crossvit_tiny_240',),
    'csatv2': ('csatv2',),
    'cspnet': ('cs3darknet_focus_s',),
    'cspnext': ('cspnext_tiny',),
    'davit': ('davit_tiny',),
    'deepseek_vit': ('deepseek_vit_412m',),
    'deit': ('deit_tiny_patch16_224',),
    'densenet': ('densenet121',),
    'dla': ('dla46x_c',),
    'dpn': ('dpn48b',),
    'edgenext': ('edgenext_xx_small',),
    'efficientformer': ('efficientformer_l1',),
    'efficientformer_v2': ('efficientformerv2_s0',),
    'efficientnet': ('mobilenetv2_035', 'efficientnet_b0', 'tf_efficientnetv2_b0'),
    'efficientvim': ('efficientvim_m1',),
    'efficientvit_mit': ('efficientvit_b0',),
    'efficientvit_msra': ('efficientvit_m0',),
    'eva': ('vit_tiny_patch16_dinov3_qkvb', 'eva02_tiny_patch14_224'),
    'fasternet': ('fasternet_t0',),
    'fastvit': ('fastvit_t8',),
    'focalnet': ('focalnet_tiny_srf',),
    'gcvit': ('gcvit_xxtiny',),
    'gemma4_vit': ('gemma4_vit_167m',),
    'ghostnet': ('ghostnet_050', 'ghostnetv3_050'),
    'hardcorenas': ('hardcorenas_b',),
    'hgnet': ('hgnetv2_b0',),
    'hiera': ('hiera_tiny_224',),
    'hieradet_sam2': ('sam2_hiera_tiny',),
    'hrnet': ('hrnet_w18_small',),
    'iformer': ('iformer_t',),
    'inception_next': ('inception_next_atto',),
    'inception_resnet_v2': ('inception_resnet_v2',),
    'inception_v3': ('inception_v3',),
    'inception_v4': ('inception_v4',),
    'lcnetv2': ('lcnetv2_small',),
    'levit': ('levit_128s',),
    'lowformer': ('lowformer_b0',),
    'mambaout': ('mambaout_femto',),
    'maxxvit': ('maxvit_pico_rw_256', 'coatnet_pico_rw_224'),
    'metaformer': ('poolformerv2_s12', 'poolformer_s12', 'convformer_s18', 'caformer_s18'),
    'mlp_mixer': ('gmlp_ti16_224', 'gmixer_12_224', 'mixer_s32_224', 'resmlp_12_224'),
    'mobilenetv3': ('mobilenetv3_small_050',),
    'mobilenetv5': ('mobilenetv5_base',),
    'mobilevit': ('mobilevit_xxs', 'mobilevitv2_050'),
    'mvitv2': ('mvitv2_tiny',),
    'naflexvit': ('naflexvit_base_patch16_parfac_gap',),
    'nasnet': ('nasnetalarge',),
    'nest': ('nest_tiny',),
    'nextvit': ('nextvit_small',),
    'nfnet': ('nf_regnet_b0', 'dm_nfnet_f0'),
    'pit': ('pit_ti_224',),
    'pnasnet': ('pnasnet5large',),
    'pvt_v2': ('pvt_v2_b0',),
    'qwen3_vit': ('qwen3_vit_88m',),
    'rdnet': ('rdnet_tiny',),
    'regnet': ('regnetx_002',),
    'repghost': ('repghostnet_050',),
    'repvit': ('repvit_m1',),
    'res2net': ('res2next50',),
    'resnest': ('resnest14d',),
    'resnet': ('resnet10t',),
    'resnetv2': ('resnetv2_18',),
    'rexnet': ('rexnet_100',),
    'selecsls': ('selecsls42',),
    'senet': ('legacy_seresnet18',),
    'sequencer': ('sequencer2d_s',),
    'shvit': ('shvit_s1',),
    'sknet': ('skresnet18',),
    'starnet': ('starnet_s050',),
    'swiftformer': ('swiftformer_xs',),
    'swin_transformer': ('swin_tiny_patch4_window7_224',),
    'swin_transformer_v2': ('swinv2_tiny_window16_256',),
    'swin_transformer_v2_cr': ('swinv2_cr_tiny_224',),
    'tiny_vit': ('tiny_vit_5m_224',),
    'tnt': ('tnt_s_legacy_patch16_224',),
    'tresnet': ('tresnet_m',),
    'twins': ('twins_svt_small', 'twins_pcpvt_small'),
    'vgg': ('vgg11',),
    'visformer': ('visformer_tiny',),
    'vision_transformer': ('vit_tiny_patch16_224',),
    'vision_transformer_hybrid': ('vit_tiny_r_s16_p8_224',),
    'vision_transformer_relpos': ('vit_srelpos_small_patch16_224',),
    'vision_transformer_sam': ('samvit_base_patch16_224',),
    'vitamin': ('vitamin_small_224',),
    'volo': ('volo_d1_224',),
    'vovnet': ('ese_vovnet19b_slim_dw',),
    'xception': ('legacy_xception',),
    'xception_aligned': ('xception41p', 'xception41'),
    'xcit': ('xcit_nano_12_p8_224',),
}
# Where 128 pixels will not do although the model is said to take any size.
_SIZES = {'halonet_h1': 256, 'deepseek_vit_412m': 224}


def networks() -> list[Network]:
    """Those of `NAMES`."""
    import timm  # noqa: F401  before any name of it is offered

    return [
        Network('timm', module, name, functools.partial(_build, name))
        for module, names in NAMES.items()
        for name in names
    ]


def _build(name: str) -> tuple[nn.Module, Tensor]:
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = timm.create_model(name, pretrained=False)
    config = model.pretrained_cfg
    size = config['input_size'][-1]
    if not config.get('fixed_input_size'):
        size = min(size, _SIZES.get(name, 128))
    return model, torch.zeros(1, config['input_size'][0], size, size)
