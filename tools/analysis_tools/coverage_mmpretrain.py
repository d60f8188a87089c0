"""mmpretrain's classifiers as its configs build them, for `coverage.py`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from coverage_network import Network
from torch import Tensor, nn

# Backbone, config, height and width of the image. Per backbone that a shipped config of a
# classifier has, the smallest network shipped; another where a variant is of another kind. Images
# have the network's own size where it is fixed or windows depend on it.
CONFIGS: tuple[tuple[str, str, int], ...] = (
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
EXCLUDED: dict[str, str] = {
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


def config_folder() -> Path:
    """The folder of the configs that the installed mmpretrain ships."""
    import mmpretrain

    return Path(mmpretrain.__file__).parent / '.mim' / 'configs'


def networks() -> list[Network]:
    """A network per kind, and the backbones that are none, with the reason."""
    import mmpretrain.models  # noqa: F401  registers them

    measured = [
        Network(
            'mmpretrain',
            family,
            name,
            functools.partial(_from_config, name, size),
            _BROKEN.get(name, ''),
        )
        for family, name, size in CONFIGS
    ]
    excluded = [
        Network('mmpretrain', family, '', excluded=reason) for family, reason in EXCLUDED.items()
    ]
    return sorted(measured + excluded, key=lambda network: network.path.lower())


def _from_config(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """The classifier of a config, as a run would build it."""
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    config = Config.fromfile(config_folder() / f'{name}.py')
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
