"""Detectors of mmdet: what their dense heads give, and how it correlates."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..analysis.eval_state import eval_mode
from ..analysis.trace import first_keys
from ..foreign import Convolution, pytree
from ..registry import TASKS
from ..subnets.supernet import Supernet
from ..subnets.swap import Role, swap
from .tasks import summed


@TASKS.register_module()
class Detection:
    """Detectors whose heads give maps, of shape (batch, channels, height, width), at every level.

    Raises:
        TypeError: If no part of the detector gives what the whole returns, or that is no map.
    """

    def __init__(self, supernet: Supernet, normalize: str) -> None:
        refuse_untraced(supernet)
        self.heads = heads_of(supernet.model, supernet.inputs)
        with eval_mode(supernet.model), torch.no_grad():
            self.outputs(supernet.model, supernet.inputs[0])

    @staticmethod
    def prepare(model: Any) -> dict[str, Any]:
        times = {}
        if getattr(model, 'with_roi_head', False):
            swap(model, TwoStages())
            times = regions_of(model)
        free_channels(model)
        parts = [
            name
            for name, part in model.named_children()
            if name != 'backbone'
            and any(isinstance(m, (Convolution, nn.Linear)) for m in part.modules())
        ]
        return {'parts': parts, 'times': times}

    def follow(self, model: nn.Module) -> None:
        """The heads are asked for by their paths."""

    def tensors(self, model: Any, inputs: Tensor) -> Any:
        if getattr(model, 'with_roi_head', False):
            return two_stages(model, inputs)
        return model(inputs, mode='tensor')

    def outputs(self, model: Any, inputs: Tensor) -> list[Tensor]:
        """Of shape (channels, positions of all images and levels), for each kind of map."""
        if getattr(model, 'with_roi_head', False):  # what is behind the proposals has its own
            return list(by_channel(two_stages(model, inputs, second=False)[0]))
        with caught(model, self.heads) as found:
            model(inputs, mode='tensor')
        return self._rows(found)

    def losses_and_outputs(
        self,
        model: Any,
        once_more: AbstractContextManager[Any],
        inputs: Tensor,
        data_samples: list[Any],
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        samples = copy.deepcopy(data_samples)  # some heads change what they are given
        with caught(model, self.heads) as found:
            losses = model(inputs, samples, mode='loss')
        return summed(losses), self._rows(found)

    def _rows(self, found: Mapping[str, list[Any]]) -> list[Tensor]:
        return [rows for head in self.heads for rows in by_channel(found[head][0])]

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        pairs = zip(student, teacher, strict=True)
        return torch.stack([correlation_distance(s, t) for s, t in pairs]).mean()


@dataclass(frozen=True)
class TwoStages(Role):
    """A detector of two stages that can be traced: its tensors without a choice of regions.

    Which regions the second stage looks at depends on what the first finds, which no trace can
    follow. Here one summary of all feature maps stands for them: the same layers read the same
    channels. How many there are is told to the costs (`regions_of`).
    """

    def members(self, base: Any) -> dict[str, Any]:
        def forward(
            self: Any, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor'
        ) -> Any:
            if mode != 'tensor' or data_samples is not None:
                return base.forward(self, inputs, data_samples, mode)
            return two_stages(self, inputs)

        return {'forward': forward}


def two_stages(model: Any, inputs: Tensor, second: bool = True) -> list[Any]:
    """What the heads of a detector of two stages give; see `TwoStages`."""
    maps = model.extract_feat(inputs)
    found = [model.rpn_head.forward(maps)] if model.with_rpn else []
    for _, head, extractor in second_stage(model) if second else ():
        layers: Any = extractor.roi_layers
        size = layers[0].output_size
        pooled = torch.stack([F.adaptive_avg_pool2d(m, size) for m in maps[: len(layers)]])
        regions = pooled.sum(dim=0)
        if model.roi_head.with_shared_head:
            regions = model.roi_head.shared_head(regions)
        found.append(head.forward(regions))
    return found


def second_stage(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """The heads of boxes and of masks: path, head, and what pools their regions."""
    for kind in ('bbox', 'mask'):
        heads = getattr(model.roi_head, f'{kind}_head', None)
        if heads is None:
            continue
        # masks may share the extractor of boxes
        pools = getattr(model.roi_head, f'{kind}_roi_extractor', None)
        pools = model.roi_head.bbox_roi_extractor if pools is None else pools
        path = f'roi_head.{kind}_head'
        if isinstance(heads, nn.ModuleList):  # a cascade
            for i, (head, pool) in enumerate(zip(heads, pools, strict=True)):
                yield f'{path}.{i}', head, pool
        else:
            yield path, heads, pools


def regions_of(model: Any) -> dict[str, int]:
    """How many regions of an image each head of the second stage has in a test, by its path."""
    test = model.test_cfg or {}
    proposals, kept = test.get('rpn') or {}, test.get('rcnn') or {}
    number = {
        'bbox_head': int(proposals.get('max_per_img', 1000)),
        'mask_head': int(kept.get('max_per_img', 100)),
    }
    found = {path: number[path.split('.')[1]] for path, _, _ in second_stage(model)}
    if model.roi_head.with_shared_head:
        found['roi_head.shared_head'] = number['bbox_head']
    return found


class FirstStage(nn.Module):
    """The first stage of a detector of two: images to the maps of its region proposals."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, inputs: Tensor) -> Any:
        """See `two_stages`."""
        return two_stages(self.detector, inputs, second=False)


def dense_part(model: nn.Module) -> nn.Module:
    """What a model does without a choice of regions: all of it, but for a second stage."""
    return FirstStage(model) if getattr(model, 'with_roi_head', False) else model


@dataclass(frozen=True)
class AnyChannels(Role):
    """What pools regions makes room for as many channels as the maps have, not as it was told."""

    def members(self, base: Any) -> dict[str, Any]:
        def forward(self: Any, feats: Any, *args: Any, **kwargs: Any) -> Any:
            self.out_channels = feats[0].shape[1]
            return base.forward(self, feats, *args, **kwargs)

        return {'forward': forward}


def free_channels(model: nn.Module) -> None:
    """Has every extractor of regions take maps of any number of channels."""
    for module in model.modules():
        if hasattr(module, 'roi_layers') and hasattr(module, 'out_channels'):
            swap(module, AnyChannels())


def correlation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus Pearson's correlation over the positions, the mean over the channels.

    The paper normalises logits over the classes (Eq. 5); here it is a channel's map that is brought
    to zero mean and unit variance, so that neither a scale nor a shift of it counts (PKD, NeurIPS
    2022). Computed in float32 whatever the inputs are.

    Args:
        student: Shape (channels, positions).
        teacher: Shape (channels, positions); gets no gradient.
    """
    with torch.autocast(student.device.type, enabled=False):
        own, other = (
            F.layer_norm(x.float(), x.shape[1:], eps=1e-12) for x in (student, teacher.detach())
        )
        return F.mse_loss(own, other) / 2


def by_channel(output: Any) -> Iterator[Tensor]:
    """What a head returns, as rows of one channel each: a kind of map after the other.

    The levels of a kind (a list of maps with as many channels) are put side by side.

    Raises:
        TypeError: If it holds something else than maps.
    """
    kinds = output if isinstance(output, (list, tuple)) else [output]
    for kind in kinds:
        levels = pytree.tree_leaves(kind)
        for level in levels:
            if not isinstance(level, Tensor) or level.dim() != 4:
                what = tuple(level.shape) if isinstance(level, Tensor) else type(level).__name__
                raise TypeError(
                    f'a head gives {what}, not maps of shape (batch, channels, height, width), '
                    'which the distillation compares'
                )
        rows = [level.transpose(0, 1).flatten(1) for level in levels]
        if len({len(row) for row in rows}) == 1:
            yield torch.cat(rows, dim=1)
        else:
            yield from rows


def refuse_untraced(supernet: Supernet) -> None:
    """Raises a `TypeError` for a layer that the trace does not reach: it could not be narrowed.

    Where it runs in training alone, or behind a choice of regions, what it reads would be narrower
    than it takes.
    """
    traced, first = supernet.graph.traced[0].trace, first_keys(supernet.model)
    inputs = (node for node in traced.module.graph.nodes if node.op == 'placeholder')
    keys = (key for key, _ in traced.lifted(supernet.model))
    used = {key for key, node in zip(keys, inputs, strict=False) if node.users}
    for path, module in supernet.model.named_modules():
        if not isinstance(module, (Convolution, nn.Linear)):
            continue
        own = {first[f'{path}.{name}'] for name, _ in module.named_parameters()}
        if own.isdisjoint(used):
            raise TypeError(
                f'{type(supernet.model).__name__}: {path} ({type(module).__name__}) does not run '
                'where the maps of the heads are worked out, so it is unknown what it reads, and a '
                'subnet could not be trained. Detectors are accepted all of whose layers run then'
            )


def heads_of(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[str, ...]:
    """The children of a detector that give what it returns.

    Raises:
        TypeError: If there is none.
    """
    names = [name for name, _ in model.named_children()]
    with eval_mode(model), torch.no_grad(), caught(model, names) as given:
        outputs = pytree.tree_leaves(model(*inputs))
        heads = [
            name
            for name, own in given.items()
            if any(x is out for x in pytree.tree_leaves(own) for out in outputs)
        ]
    if heads:
        return tuple(heads)
    raise TypeError(
        f'{type(model).__name__} returns nothing that one of its parts gives: there is nothing '
        'that a subnet could be compared by'
    )


@contextmanager
def caught(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, list[Any]]]:
    """Inside, what parts of a model return is kept, by path; a call of ``forward`` counts too."""
    found: dict[str, list[Any]] = {path: [] for path in paths}
    with ExitStack() as stack:
        for path, outputs in found.items():
            stack.enter_context(_keeping(model.get_submodule(path), outputs))
        yield found


@contextmanager
def _keeping(part: nn.Module, outputs: list[Any]) -> Iterator[None]:
    own, before = part.forward, dict(vars(part))

    def forward(*args: Any, **kwargs: Any) -> Any:
        outputs.append(own(*args, **kwargs))
        return outputs[-1]

    vars(part)['forward'] = forward
    try:
        yield
    finally:
        if 'forward' in before:
            vars(part)['forward'] = before['forward']
        else:
            del vars(part)['forward']
