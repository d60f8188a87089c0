"""Small networks of transformers, from configs that are written here, for `coverage.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from coverage_network import Network
from torch import Tensor, nn

_T = dict(hidden_size=96, num_hidden_layers=6, num_attention_heads=4, intermediate_size=192)
_VIT = dict(_T, image_size=64, patch_size=16)
_TEXT = dict(_T, vocab_size=120, max_position_embeddings=64)
_CAUSAL = dict(_TEXT, use_cache=False, num_key_value_heads=2, head_dim=24, pad_token_id=0)
_WINDOWS = dict(image_size=64, patch_size=2, embed_dim=32, depths=[2, 4, 2], num_heads=[2, 4, 8],
                window_size=4)  # fmt: skip
_STAGES = dict(hidden_sizes=[32, 64, 96, 128], depths=[2, 2, 3, 2])
_BOTTLENECKS = dict(embedding_size=32, hidden_sizes=[64, 128, 160, 192], depths=[2, 3, 3, 2])
_EAGER = dict(attn_implementation='eager')
_CNN = dict(model_type='resnet', **_BOTTLENECKS, out_features=['stage4'])
_DETR = dict(
    use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=_CNN,
    d_model=64, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4, num_queries=10,
    decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128,
)  # fmt: skip

Options = dict[str, Any]
Inputs = Callable[[], dict[str, Tensor]]


def _image(size: int = 64, **further: Any) -> Inputs:
    return lambda: {'pixel_values': torch.zeros(1, 3, size, size), **further}


def _video() -> dict[str, Tensor]:
    return {'pixel_values': torch.zeros(1, 4, 3, 32, 32)}


def _tokens() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {'input_ids': torch.randint(3, 100, (1, 16), generator=generator)}


def _masked() -> dict[str, Tensor]:
    return {**_tokens(), 'attention_mask': torch.ones(1, 16, dtype=torch.long)}


def _patches() -> dict[str, Tensor]:
    return {
        'pixel_values': torch.zeros(1, 16, 3 * 16 * 16),
        'pixel_attention_mask': torch.ones(1, 16, dtype=torch.long),
        'spatial_shapes': torch.tensor([[4, 4]]),
    }


def _prompted() -> dict[str, Tensor]:
    image = torch.zeros(1, 3, 64, 64)
    return {'pixel_values': image, 'prompt_pixel_values': image, 'prompt_masks': image}


# Family, class, fields of its config, inputs. Attention is ``sdpa`` where nothing else is said.
NETWORKS: tuple[tuple[str, str, Options, Inputs], ...] = (
    ('vit', 'ViTForImageClassification', _VIT, _image()),
    ('vit', 'ViTModel', dict(_VIT, **_EAGER), _image()),
    ('deit', 'DeiTForImageClassificationWithTeacher', _VIT, _image()),
    ('beit', 'BeitForImageClassification', dict(_VIT, use_relative_position_bias=True), _image()),
    ('beit', 'BeitBackbone', dict(_VIT, out_indices=[2, 4, 6], reshape_hidden_states=True),
     _image()),
    ('data2vec', 'Data2VecVisionForImageClassification',
     dict(_VIT, use_shared_relative_position_bias=True), _image()),
    ('swin', 'SwinForImageClassification', _WINDOWS, _image()),
    ('swin', 'SwinBackbone', dict(_WINDOWS, out_features=['stage1', 'stage2', 'stage3']), _image()),
    ('swinv2', 'Swinv2ForImageClassification', _WINDOWS, _image()),
    ('convnext', 'ConvNextForImageClassification', _STAGES, _image()),
    ('convnextv2', 'ConvNextV2ForImageClassification', _STAGES, _image()),
    ('resnet', 'ResNetForImageClassification', _BOTTLENECKS, _image()),
    ('resnet', 'ResNetBackbone', dict(_BOTTLENECKS, layer_type='basic',
                                      out_features=['stage2', 'stage4']), _image()),
    ('regnet', 'RegNetForImageClassification', dict(_BOTTLENECKS, groups_width=16), _image()),
    ('bit', 'BitForImageClassification', dict(_BOTTLENECKS, num_groups=8), _image()),
    ('mobilevit', 'MobileViTForImageClassification',
     dict(hidden_sizes=[64, 80, 96], neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320],
          image_size=64), _image()),
    ('mobilevitv2', 'MobileViTV2ForImageClassification', dict(image_size=64, width_multiplier=0.5),
     _image()),
    ('mobilenet_v1', 'MobileNetV1ForImageClassification', dict(depth_multiplier=0.5), _image()),
    ('mobilenet_v2', 'MobileNetV2ForImageClassification', dict(), _image()),
    ('efficientnet', 'EfficientNetForImageClassification', dict(
        image_size=64, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280), _image()),
    ('poolformer', 'PoolFormerForImageClassification', _STAGES, _image()),
    ('segformer', 'SegformerModel', dict(
        hidden_sizes=[32, 64, 96, 128], depths=[2, 2, 3, 2], num_attention_heads=[1, 2, 3, 4]),
     _image()),
    ('segformer', 'SegformerForImageClassification', dict(
        hidden_sizes=[32, 64, 96, 128], depths=[2, 2, 3, 2], num_attention_heads=[1, 2, 3, 4]),
     _image()),
    ('segformer', 'SegformerForSemanticSegmentation', dict(
        hidden_sizes=[32, 64, 96, 128], depths=[2, 2, 3, 2], num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=64), _image()),
    ('glpn', 'GLPNForDepthEstimation', dict(
        hidden_sizes=[32, 64, 96, 128], depths=[2, 2, 3, 2], num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=64), _image()),
    ('pvt', 'PvtForImageClassification', dict(
        image_size=64, hidden_sizes=[32, 64, 96, 128], depths=[2, 2, 3, 2],
        num_attention_heads=[1, 2, 3, 4]), _image()),
    ('pvt_v2', 'PvtV2ForImageClassification', dict(
        image_size=64, hidden_sizes=[32, 64, 96, 128], depths=[2, 2, 3, 2],
        num_attention_heads=[1, 2, 3, 4]), _image()),
    ('levit', 'LevitForImageClassificationWithTeacher', dict(
        image_size=64, hidden_sizes=[64, 96, 128], num_attention_heads=[2, 3, 4], depths=[2, 3, 3],
        key_dim=[16, 16, 16]), _image()),
    ('cvt', 'CvtForImageClassification', dict(
        embed_dim=[32, 64, 96], num_heads=[1, 2, 4], depth=[1, 2, 4]), _image()),
    ('dinov2', 'Dinov2ForImageClassification', _VIT, _image()),
    ('dinov2', 'Dinov2Backbone', dict(_VIT, use_swiglu_ffn=True, out_indices=[3, 6]), _image()),
    ('dinov2_with_registers', 'Dinov2WithRegistersForImageClassification', _VIT, _image()),
    ('dinov3_vit', 'DINOv3ViTModel', dict(_VIT, use_gated_mlp=True), _image()),
    ('dinov3_convnext', 'DINOv3ConvNextModel', _STAGES, _image()),
    ('ijepa', 'IJepaForImageClassification', _VIT, _image()),
    ('vit_msn', 'ViTMSNForImageClassification', _VIT, _image()),
    ('vit_mae', 'ViTMAEModel', dict(_VIT, mask_ratio=0.0), _image(
        noise=torch.linspace(0, 1, 16)[None])),
    ('hiera', 'HieraForImageClassification', dict(
        embed_dim=32, image_size=[64, 64], depths=[1, 2, 3, 2], num_heads=[1, 2, 4, 8]), _image()),
    ('focalnet', 'FocalNetForImageClassification', dict(
        image_size=64, embed_dim=32, depths=[2, 2, 3, 2]), _image()),
    ('swiftformer', 'SwiftFormerForImageClassification', dict(
        image_size=64, depths=[2, 2, 3, 2], embed_dims=[32, 48, 64, 96]), _image()),
    ('hgnet_v2', 'HGNetV2ForImageClassification', dict(), _image()),
    ('pp_lcnet', 'PPLCNetForImageClassification', dict(), _image()),
    ('textnet', 'TextNetForImageClassification', dict(), _image()),
    ('clip', 'CLIPVisionModel', _VIT, _image()),
    ('clip', 'CLIPTextModel', dict(_TEXT, eos_token_id=2), _tokens),
    ('siglip', 'SiglipVisionModel', _VIT, _image()),
    ('siglip2', 'Siglip2VisionModel', dict(_T, patch_size=16, num_patches=16), _patches),
    ('aimv2', 'Aimv2VisionModel', _VIT, _image()),
    ('mlcd', 'MLCDVisionModel', _VIT, _image()),
    ('sam', 'SamVisionModel', dict(
        _VIT, mlp_dim=192, output_channels=64, window_size=2, global_attn_indexes=[2, 5]),
     _image()),
    ('seggpt', 'SegGptModel', dict(
        _T, mlp_dim=192, image_size=[128, 64], patch_size=16, merge_index=1,
        intermediate_hidden_state_indices=[2, 3, 4, 5], decoder_hidden_size=32,
        pretrain_image_size=64), _prompted),
    ('vitdet', 'VitDetBackbone', dict(
        _VIT, window_size=2, window_block_indices=[0, 1, 3, 4], out_indices=[6],
        residual_block_indices=[2]), _image()),
    ('vitpose_backbone', 'VitPoseBackbone', dict(_VIT, image_size=[64, 64], patch_size=[16, 16]),
     _image()),
    ('yolos', 'YolosForObjectDetection', dict(
        _VIT, image_size=[64, 64], num_detection_tokens=10), _image()),
    ('dpt', 'DPTForDepthEstimation', dict(
        _VIT, backbone_out_indices=[1, 2, 4, 5], neck_hidden_sizes=[32, 48, 64, 96],
        fusion_hidden_size=32), _image()),
    ('upernet', 'UperNetForSemanticSegmentation', dict(
        backbone_config=dict(model_type='convnext', **_STAGES, out_features=[
            'stage1', 'stage2', 'stage3', 'stage4']),
        hidden_size=64, auxiliary_in_channels=96), _image()),
    ('detr', 'DetrModel', _DETR, _image()),
    ('detr', 'DetrForObjectDetection', _DETR, _image()),
    ('conditional_detr', 'ConditionalDetrForObjectDetection', _DETR, _image()),
    ('vivit', 'VivitForVideoClassification', dict(
        _T, image_size=32, num_frames=4, tubelet_size=[2, 8, 8]), _video),
    ('timesformer', 'TimesformerForVideoClassification', dict(
        _T, image_size=32, num_frames=4, patch_size=8), _video),
    ('videomae', 'VideoMAEForVideoClassification', dict(
        _T, image_size=32, num_frames=4, patch_size=8), _video),
    ('swin2sr', 'Swin2SRForImageSuperResolution', dict(
        image_size=32, embed_dim=48, depths=[2, 2], num_heads=[2, 2], window_size=4, upscale=2),
     _image(32)),
    ('audio_spectrogram_transformer', 'ASTForAudioClassification', dict(
        _T, num_mel_bins=32, max_length=64), lambda: {'input_values': torch.zeros(1, 64, 32)}),
    ('wav2vec2', 'Wav2Vec2ForSequenceClassification', dict(
        _T, conv_dim=[64, 64, 96], conv_stride=[5, 4, 4], conv_kernel=[10, 8, 4],
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, classifier_proj_size=64),
     lambda: {'input_values': torch.zeros(1, 2000)}),
    ('bert', 'BertForSequenceClassification', _TEXT, _masked),
    ('bert', 'BertModel', dict(_TEXT, **_EAGER), _tokens),
    ('roberta', 'RobertaForSequenceClassification', _TEXT, _masked),
    ('distilbert', 'DistilBertForSequenceClassification', dict(
        vocab_size=120, max_position_embeddings=64, dim=96, n_layers=6, n_heads=4, hidden_dim=192),
     _masked),
    ('albert', 'AlbertForSequenceClassification', dict(_TEXT, embedding_size=48), _masked),
    ('electra', 'ElectraForSequenceClassification', dict(_TEXT, embedding_size=48), _masked),
    ('mpnet', 'MPNetForSequenceClassification', _TEXT, _masked),
    ('deberta_v2', 'DebertaV2ForSequenceClassification', dict(
        _TEXT, relative_attention=True, pos_att_type=['c2p', 'p2c'], position_buckets=16,
        share_att_key=True), _masked),
    ('modernbert', 'ModernBertForSequenceClassification', dict(
        _TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        local_attention=8), _masked),
    ('mobilebert', 'MobileBertForSequenceClassification', dict(
        _TEXT, hidden_size=96, intra_bottleneck_size=48, embedding_size=48,
        true_hidden_size=48), _masked),
    ('squeezebert', 'SqueezeBertForSequenceClassification', dict(_TEXT, embedding_size=96),
     _masked),
    ('fnet', 'FNetForSequenceClassification', dict(
        vocab_size=120, hidden_size=96, num_hidden_layers=6, intermediate_size=192,
        max_position_embeddings=64), _tokens),
    ('gpt2', 'GPT2LMHeadModel', dict(
        vocab_size=120, n_positions=64, n_embd=96, n_layer=6, n_head=4, use_cache=False), _tokens),
    ('gpt_neox', 'GPTNeoXForCausalLM', dict(_TEXT, use_cache=False), _tokens),
    ('opt', 'OPTForCausalLM', dict(
        _TEXT, ffn_dim=192, word_embed_proj_dim=96, use_cache=False), _masked),
    ('llama', 'LlamaForCausalLM', _CAUSAL, _tokens),
    ('qwen3', 'Qwen3ForCausalLM', _CAUSAL, _tokens),
    ('mistral', 'MistralForCausalLM', dict(_CAUSAL, sliding_window=8), _tokens),
    ('gemma2', 'Gemma2ForCausalLM', dict(_CAUSAL, sliding_window=8), _tokens),
    ('t5', 'T5EncoderModel', dict(
        vocab_size=120, d_model=96, d_kv=24, d_ff=192, num_layers=6, num_heads=4, use_cache=False),
     _masked),
    ('bart', 'BartModel', dict(
        vocab_size=120, d_model=96, encoder_layers=4, decoder_layers=4, encoder_ffn_dim=192,
        decoder_ffn_dim=192, encoder_attention_heads=4, decoder_attention_heads=4,
        max_position_embeddings=64, use_cache=False), _tokens),
    ('mamba', 'MambaModel', dict(
        vocab_size=120, hidden_size=64, state_size=8, num_hidden_layers=6, use_cache=False),
     _tokens),
)  # fmt: skip


def networks() -> list[Network]:
    """Those of `NETWORKS`."""
    import transformers  # noqa: F401  before any name of it is offered

    return [
        Network('transformers', family, name, functools.partial(_build, name, options, inputs))
        for family, name, options, inputs in NETWORKS
    ]


def _build(name: str, options: Options, inputs: Inputs) -> tuple[nn.Module, dict[str, Tensor]]:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    made = getattr(transformers, name)
    attention = options.get('attn_implementation')
    fields = {key: value for key, value in options.items() if key != 'attn_implementation'}
    config = made.config_class(**fields)
    if attention:
        config._attn_implementation = attention
    return made(config), inputs()
