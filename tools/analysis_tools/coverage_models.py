"""The networks that `coverage.py` measures, each built without weights.

Only what is asked for is imported: the libraries are large, and timm is optional.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SOURCES = ('mmpretrain', 'torchvision', 'timm')


@dataclass(frozen=True)
class Network:
    """A network that is measured, or named with the reason why it is not.

    Attributes:
        source: The library.
        family: The type of the backbone, or the module of the library.
        name: Its name in the library; for mmpretrain the config's path without ``.py``.
        build: Makes the network, with whatever initialisation it has, and an image for it.
        excluded: Why it is not measured.
    """

    source: str
    family: str
    name: str
    build: Callable[[], tuple[nn.Module, Tensor]] | None = None
    excluded: str = ''

    @property
    def path(self) -> str:
        """What ``--only`` is matched with."""
        return f'{self.source}/{self.family}/{self.name}'


def networks(source: str) -> list[Network]:
    """All networks of a library.

    Raises:
        ImportError: If the library is not installed.
    """
    return {'mmpretrain': _mmpretrain, 'torchvision': _torchvision, 'timm': _timm}[source]()


# --- mmpretrain: classifiers as its configs build them ------------------------------------------

# Backbone, config, height and width of the image. Per backbone that a shipped config of a
# classifier has, the smallest network shipped; another where a variant is of another kind. Images
# have the network's own size where it is fixed or windows depend on it.
MMPRETRAIN: tuple[tuple[str, str, int], ...] = (
    ('BEiTViT', 'beit/benchmarks/beit-base-p16_8xb128-coslr-100e_in1k', 224),
    ('BEiTViT', 'beitv2/benchmarks/beit-base-p16_8xb128-coslr-100e_in1k', 224),
    ('CSPDarkNet', 'cspnet/cspdarknet50_8xb32_in1k', 64),
    ('CSPResNeXt', 'cspnet/cspresnext50_8xb32_in1k', 64),
    ('CSPResNet', 'cspnet/cspresnet50_8xb32_in1k', 64),
    ('Conformer', 'conformer/conformer-tiny-p16_8xb128_in1k', 224),
    ('ConvMixer', 'convmixer/convmixer-768-32_10xb64_in1k', 64),
    ('ConvNeXt', 'convnext/convnext-tiny_32xb128_in1k', 64),
    ('ConvNeXt', 'convnext_v2/convnext-v2-atto_32xb32_in1k', 64),
    ('DaViT', 'davit/davit-tiny_4xb256_in1k', 224),
    ('DeiT3', 'deit3/deit3-small-p16_64xb64_in1k', 224),
    ('DenseNet', 'densenet/densenet121_4xb256_in1k', 64),
    ('DistilledVisionTransformer', 'deit/deit-tiny-distilled_4xb256_in1k', 224),
    ('EdgeNeXt', 'edgenext/edgenext-xxsmall_8xb256_in1k', 128),
    ('EfficientFormer', 'efficientformer/efficientformer-l1_8xb128_in1k', 224),
    ('EfficientNet', 'efficientnet/efficientnet-b0_8xb32_in1k', 64),
    ('EfficientNet', 'efficientnet/efficientnet-es_8xb32-01norm_in1k', 64),
    ('EfficientNetV2', 'efficientnet_v2/efficientnetv2-b0_8xb32_in1k', 64),
    ('EfficientNetV2', 'efficientnet_v2/efficientnetv2-s_8xb32_in1k-384px', 64),
    ('HRNet', 'hrnet/hrnet-w18_4xb32_in1k', 64),
    ('HiViT', 'hivit/hivit-tiny-p16_16xb64_in1k', 224),
    ('HorNet', 'hornet/hornet-tiny_8xb128_in1k', 64),
    ('HorNet', 'hornet/hornet-tiny-gf_8xb128_in1k', 224),
    ('InceptionV3', 'inception_v3/inception-v3_8xb32_in1k', 128),
    ('LeNet5', 'lenet/lenet5_mnist', 32),
    ('LeViT', 'levit/levit-128s_8xb256_in1k', 224),
    ('LeViT', 'levit/deploy/levit-128s_8xb256_in1k', 224),
    ('LoRAModel', 'vision_transformer/vit-base-p16_8xb64-lora_in1k-384px', 384),
    ('MViT', 'mvit/mvitv2-tiny_8xb256_in1k', 224),
    ('MixMIMTransformer', 'mixmim/benchmarks/mixmim-base_8xb128-coslr-100e_in1k', 224),
    ('MlpMixer', 'mlp_mixer/mlp-mixer-base-p16_64xb64_in1k', 224),
    ('MoCoV3ViT', 'mocov3/benchmarks/vit-small-p16_8xb128-linear-coslr-90e_in1k', 224),
    ('MobileNetV2', 'mobilenet_v2/mobilenet-v2_8xb32_in1k', 64),
    ('MobileNetV3', 'mobilenet_v3/mobilenet-v3-small-050_8xb128_in1k', 64),
    ('MobileNetV3', 'mobilenet_v3/mobilenet-v3-large_8xb128_in1k', 64),
    ('MobileOne', 'mobileone/mobileone-s0_8xb32_in1k', 64),
    ('MobileOne', 'mobileone/deploy/mobileone-s0_deploy_8xb32_in1k', 64),
    ('MobileViT', 'mobilevit/mobilevit-xxsmall_8xb128_in1k', 128),
    ('PCPVT', 'twins/twins-pcpvt-small_8xb128_in1k', 224),
    ('PoolFormer', 'poolformer/poolformer-s12_32xb128_in1k', 64),
    ('PyramidVig', 'vig/pvig-tiny_8xb128_in1k', 224),
    ('RIFormer', 'riformer/riformer-s12_8xb128_in1k', 64),
    ('RIFormer', 'riformer/deploy/riformer-s12-deploy_8xb128_in1k', 64),
    ('RegNet', 'regnet/regnetx-400mf_8xb128_in1k', 64),
    # the configs of the smaller 31B cannot be read: their base file is no config
    ('RepLKNet', 'replknet/replknet-31L_32xb64_in1k-384px', 64),
    ('RepLKNet', 'replknet/deploy/replknet-31L-deploy_32xb64_in1k-384px', 64),
    ('RepMLPNet', 'repmlp/repmlp-base_8xb64_in1k', 224),
    ('RepMLPNet', 'repmlp/repmlp-base_delopy_8xb64_in1k', 224),
    ('RepVGG', 'repvgg/repvgg-A0_8xb32_in1k', 64),
    ('RepVGG', 'repvgg/repvgg-A0_deploy_in1k', 64),
    ('Res2Net', 'res2net/res2net50-w14-s8_8xb32_in1k', 64),
    ('ResNeSt', 'resnest/resnest50_32xb64_in1k', 64),
    ('ResNeXt', 'resnext/resnext50-32x4d_8xb32_in1k', 64),
    ('ResNet', 'resnet/resnet18_8xb32_in1k', 64),
    ('ResNet', 'resnet/resnet50_8xb32_in1k', 64),
    ('ResNet', 'csra/resnet101-csra_1xb16_voc07-448px', 64),
    ('ResNetV1c', 'resnet/resnetv1c50_8xb32_in1k', 64),
    ('ResNetV1d', 'resnet/resnetv1d50_8xb32_in1k', 64),
    ('ResNet_CIFAR', 'resnet/resnet18_8xb16_cifar10', 32),
    ('ResNet_CIFAR', 'resnet/resnet50_8xb16_cifar10', 32),
    ('RevVisionTransformer', 'revvit/revvit-small_8xb256_in1k', 224),
    ('SEResNeXt', 'seresnet/seresnext50-32x4d_8xb32_in1k', 64),
    ('SEResNet', 'seresnet/seresnet50_8xb32_in1k', 64),
    ('SVT', 'twins/twins-svt-small_8xb128_in1k', 224),
    ('ShuffleNetV1', 'shufflenet_v1/shufflenet-v1-1x_16xb64_in1k', 64),
    ('ShuffleNetV2', 'shufflenet_v2/shufflenet-v2-1x_16xb64_in1k', 64),
    ('SwinTransformer', 'swin_transformer/swin-tiny_16xb64_in1k', 224),
    ('SwinTransformerV2', 'swin_transformer_v2/swinv2-tiny-w8_16xb64_in1k-256px', 256),
    ('T2T_ViT', 't2t_vit/t2t-vit-t-14_8xb64_in1k', 224),
    ('TNT', 'tnt/tnt-s-p16_16xb64_in1k', 224),
    ('TinyViT', 'tinyvit/tinyvit-5m_8xb256_in1k', 224),
    ('VAN', 'van/van-tiny_8xb128_in1k', 64),
    ('VGG', 'vgg/vgg11_8xb32_in1k', 224),
    ('VGG', 'vgg/vgg11bn_8xb32_in1k', 224),
    ('ViTEVA02', 'eva02/eva02-tiny-p14_in1k', 336),
    # its own 1024 pixels take a minute per forward here; the positions are interpolated
    ('ViTSAM', 'sam/vit-base-p16_sam_headless', 256),
    ('Vig', 'vig/vig-tiny_8xb128_in1k', 224),
    ('VisionTransformer', 'deit/deit-tiny_4xb256_in1k', 224),
    ('VisionTransformer', 'clip/vit-base-p32_pt-64xb64_in1k', 224),
    ('VisionTransformer', 'dinov2/vit-small-p14_dinov2-pre_headless', 518),
    ('XCiT', 'xcit/xcit-nano-12-p16_8xb128_in1k', 224),
)

# Named above, and yet no network.
_BROKEN = {
    'levit/deploy/levit-128s_8xb256_in1k': 'mmpretrain cannot build it: LeViTClsHead calls its '
    'own switch_to_deploy() with an argument that it does not take',
}
# Backbones of shipped configs that do not make features of an image alone.
_MASKS = 'pre-training form of {}: its forward takes or draws a mask of the image'
_SPARSE = 'pre-training form of {}: its convolutions read a mask from a global variable'
_TEXT = 'part of {}, a model of image and text; mmpretrain wants transformers for it'
MMPRETRAIN_EXCLUDED: dict[str, str] = {
    'BEiTPretrainViT': _MASKS.format('BEiTViT'),
    'CAEPretrainViT': _MASKS.format('BEiTViT'),
    'MAEHiViT': _MASKS.format('HiViT'),
    'MAEViT': _MASKS.format('VisionTransformer'),
    'MFFViT': _MASKS.format('VisionTransformer'),
    'MILANViT': _MASKS.format('VisionTransformer'),
    'MaskFeatViT': _MASKS.format('VisionTransformer'),
    'MixMIMPretrainTransformer': _MASKS.format('MixMIMTransformer'),
    'SimMIMSwinTransformer': _MASKS.format('SwinTransformer'),
    'iTPNHiViT': _MASKS.format('HiViT'),
    'SparseConvNeXt': _SPARSE.format('ConvNeXt'),
    'SparseResNet': _SPARSE.format('ResNet'),
    'ModifiedResNet': _TEXT.format('ChineseCLIP'),
    'OFAResNet': _TEXT.format('OFA'),
}


def mmpretrain_configs() -> Path:
    """The folder of the configs that the installed mmpretrain ships."""
    import mmpretrain

    return Path(mmpretrain.__file__).parent / '.mim' / 'configs'


def _mmpretrain() -> list[Network]:
    import mmpretrain.models  # noqa: F401  registers them

    measured = [
        Network(
            'mmpretrain',
            family,
            name,
            functools.partial(_from_config, name, size),
            _BROKEN.get(name, ''),
        )
        for family, name, size in MMPRETRAIN
    ]
    excluded = [
        Network('mmpretrain', family, '', excluded=reason)
        for family, reason in MMPRETRAIN_EXCLUDED.items()
    ]
    return sorted(measured + excluded, key=lambda network: network.path.lower())


def _from_config(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """The classifier of a config, as a run would build it."""
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    config = Config.fromfile(mmpretrain_configs() / f'{name}.py')
    model = _without_weights(config.model.to_dict())
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(model), torch.zeros(1, 1 if name.startswith('lenet') else 3, size, size)


def _without_weights(config: Any) -> Any:
    """The config less what would load a checkpoint."""
    if isinstance(config, dict):
        return {
            key: _without_weights(value)
            for key, value in config.items()
            if key not in ('init_cfg', 'pretrained')
        }
    if isinstance(config, list | tuple):
        return type(config)(_without_weights(value) for value in config)
    return config


# --- torchvision: all classifiers, and the backbones of its networks for segmentation ------------

# Where 64 pixels are too few, or windows and positions want the network's own size.
_TORCHVISION_SIZES = {
    'alexnet': 128, 'inception_v3': 128, 'maxvit_t': 224,
    'swin_t': 224, 'swin_s': 224, 'swin_b': 224,
    'swin_v2_t': 256, 'swin_v2_s': 256, 'swin_v2_b': 256,
    'vit_b_16': 224, 'vit_b_32': 224, 'vit_l_16': 224, 'vit_l_32': 224, 'vit_h_14': 224,
}  # fmt: skip


def _torchvision() -> list[Network]:
    from torchvision import models

    return [
        Network(
            'torchvision',
            getattr(models, name).__module__.rpartition('.')[2],
            name,
            functools.partial(_torchvision_model, name),
        )
        for name in models.list_models(module=models)
    ] + [
        Network(
            'torchvision',
            'segmentation',
            f'{name}.backbone',
            functools.partial(_torchvision_backbone, name),
        )
        for name in models.list_models(module=models.segmentation)
    ]


def _torchvision_model(name: str) -> tuple[nn.Module, Tensor]:
    from torchvision import models

    size = _TORCHVISION_SIZES.get(name, 64)
    # these two draw their weights slowly, and warn when not told whether to
    options = dict(init_weights=False) if name in ('googlenet', 'inception_v3') else {}
    return models.get_model(name, weights=None, **options), torch.zeros(1, 3, size, size)


def _torchvision_backbone(name: str) -> tuple[nn.Module, Tensor]:
    from torchvision import models

    model = models.get_model(name, weights=None, weights_backbone=None)
    return model.backbone, torch.zeros(1, 3, 64, 64)


# --- timm: of every module the smallest model ----------------------------------------------------

# The first of every module has the fewest parameters of ``timm.list_models(module=...)``
# in timm 1.0.31, each built on the meta device, less its fixtures ``test_*``. Further ones are of
# another kind.
TIMM: dict[str, tuple[str, ...]] = {
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
_TIMM_SIZES = {'halonet_h1': 256, 'deepseek_vit_412m': 224}


def _timm() -> list[Network]:
    import timm  # noqa: F401  before any name of it is offered

    return [
        Network('timm', module, name, functools.partial(_timm_model, name))
        for module, names in TIMM.items()
        for name in names
    ]


def _timm_model(name: str) -> tuple[nn.Module, Tensor]:
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = timm.create_model(name, pretrained=False)
    config = model.pretrained_cfg
    size = config['input_size'][-1]
    if not config.get('fixed_input_size'):
        size = min(size, _TIMM_SIZES.get(name, 128))
    return model, torch.zeros(1, config['input_size'][0], size, size)
