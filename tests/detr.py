"""Small transformers for detection, as mmdet's configs have them."""

from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
FILES = {
    'detr': 'detr/detr_r50_8xb2-150e_coco.py',
    'conditional': 'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'dab': 'dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    'deformable': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'refined': 'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'dino': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
}
SMALL = dict(
    embed_dims=32, out_channels=32, num_feats=16, num_heads=4, feedforward_channels=64,
    num_layers=2, num_queries=12, num_groups=4, num_dn_queries=4, num_classes=10,
    max_per_img=12, dropout=0.0, attn_drop=0.0, ffn_drop=0.0,
)  # fmt: skip
# of these mmdet's code has the width of the embedding as a number
WIDE = SMALL | dict(embed_dims=256, out_channels=256, num_feats=128)


def detector(name: str) -> dict[str, Any]:
    """Two layers of four heads each behind a slim ResNet-18 that is trained whole."""
    config = Config.fromfile(CONFIGS / FILES[name]).model.to_dict()
    levels = config['backbone']['out_indices']
    config['backbone'] = dict(
        type='mmpretrain.ResNet', depth=18, stem_channels=16, base_channels=16, out_indices=levels
    )
    config['neck']['in_channels'] = [16 * 2**level for level in levels]
    numbers = WIDE if name in ('conditional', 'dab', 'refined') else SMALL
    config['bbox_head']['embed_dims'] = numbers['embed_dims']
    return with_numbers(config, numbers)


def with_numbers(config: Any, numbers: dict[str, Any]) -> Any:
    """A config with these numbers, and as many heads where it does not say."""
    if not isinstance(config, dict):
        return config
    found = {key: with_numbers(value, numbers) for key, value in config.items()}
    found |= {key: numbers[key] for key, value in config.items() if key in numbers and value}
    for name in found.keys() & {'self_attn_cfg', 'cross_attn_cfg'}:
        own = ('num_heads',) if 'attn_drop' in found[name] else ('num_heads', 'dropout')
        found[name] |= {key: numbers[key] for key in own}
    return found


def samples(*shapes: tuple[int, int], objects: int = 1) -> list[DetDataSample]:
    """Images of these sizes in one batch, which is as large as the largest; the rest is padding."""
    batch = tuple(map(max, zip(*shapes, strict=True)))
    found = []
    for index, shape in enumerate(shapes):
        known = dict(batch_input_shape=batch, pad_shape=batch, img_shape=shape, ori_shape=shape)
        sample = DetDataSample(metainfo={**known, 'scale_factor': (1, 1), 'img_id': index})
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8.0, 8, 40, 40]]).repeat(objects, 1),
            labels=torch.full((objects,), index),
        )
        found.append(sample)
    return found


def images(found: list[DetDataSample]) -> torch.Tensor:
    """Random ones of these samples, padded with zeros."""
    generator = torch.Generator().manual_seed(len(found))
    batch = torch.zeros(len(found), 3, *found[0].batch_input_shape)
    for image, sample in zip(batch, found, strict=True):
        height, width = sample.img_shape
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
    return batch
