"""Trying a detector: built from its config, its backbone loaded and compared, run on an image."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import initialize
from torch import nn

from ..analysis.eval_state import eval_mode
from ..checkpoints import plain_loading
from ..errors import DetectorError
from ..registry import build_model
from .export import WEIGHTS, load_backbone

SCOPE = 'mmdet'  # of types without one, in configs of detectors
SIZE = (256, 320)  # height and width of the image


def try_detector(config: Config, dense: Config, export: Path) -> str | None:
    """Builds a detector, loads the backbone of an export into it and has it look at an image.

    Returns why nothing could be tried: the dense detector fails at the same place (for want of a
    GPU, a package, another kind of input). Other failures are errors, which name the module.
    """
    message, place = _failure(config, export)
    if message is not None and place != _failure(dense)[1]:
        raise DetectorError(f'the detector cannot have the compact backbone: {message}')
    return message


def _described(error: Exception, modules: list[str]) -> tuple[str, str]:
    """What was the matter, in the last module, and where in the code (many assertions are mute)."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if 'torch' not in Path(frame.filename).parts] or frames
    place = f'{Path(own[-1].filename).name}:{own[-1].lineno}: {own[-1].line}'
    return ': '.join([*modules[-1:], type(error).__name__, f'{error} ({place})']), place


@torch.no_grad()
def _failure(config: Config, export: Path | None = None) -> tuple[str | None, str]:
    """What goes wrong, and where, when a detector with the backbone of an export sees an image."""
    from mmdet.structures import DetDataSample

    try:
        detector: Any = build_model(config.model, config.get('default_scope', SCOPE))
    except Exception as error:  # whatever its parts say of their options
        return _described(error, [])
    if export is not None:
        _load_backbones(detector, export)
    image = torch.randint(256, (3, *SIZE), dtype=torch.uint8)
    sample = DetDataSample(metainfo=dict(
        img_id=0, img_path='', ori_shape=SIZE, img_shape=SIZE, scale_factor=(1.0, 1.0),
        flip=False, flip_direction=None,
    ))  # fmt: skip
    with running(detector) as inside:
        try:
            detector.eval()
            data = detector.data_preprocessor({'inputs': [image], 'data_samples': [sample]}, False)
            detector(**data, mode='predict')
        except Exception as error:  # whatever reads other channels than it gets
            return _described(error, inside)
    return None, ''


def _load_backbones(detector: nn.Module, export: Path) -> None:
    """Loads an export into the backbones of a detector, and compares what they see."""
    weights = str(export.resolve() / WEIGHTS)
    reference: Any = load_backbone(export)
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    for path, module in detector.named_modules():
        init_cfg = getattr(module, 'init_cfg', None)
        if not isinstance(init_cfg, dict) or init_cfg.get('checkpoint') != weights:
            continue
        with plain_loading():
            initialize(module, init_cfg)
        with eval_mode(module), eval_mode(reference):
            found, expected = list(module(images)), list(reference(images))
        if hasattr(module, 'out_indices'):
            by_index = dict(zip(reference.out_indices, expected, strict=True))
            expected = [by_index[i] for i in module.out_indices]
        if not all(map(torch.equal, found, expected)):
            raise DetectorError(f"{path} does not give the features of the export's backbone")


@contextmanager
def running(model: nn.Module) -> Iterator[list[str]]:
    """Inside, the list holds the paths of the modules whose forward runs, outermost first."""
    stack: list[str] = []
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if path:
                enter = module.register_forward_pre_hook(lambda *_, path=path: stack.append(path))
                leave = module.register_forward_hook(lambda *_: (stack.pop(), None)[1])
                hooks.enter_context(enter)
                hooks.enter_context(leave)
        yield stack
