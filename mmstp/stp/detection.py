"""Detectors of mmdet: what their dense heads give, and how it correlates."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..analysis.eval_state import eval_mode
from ..analysis.trace import first_keys
from ..foreign import Convolution, pytree
from ..registry import TASKS
from ..subnets.supernet import Supernet
from ..subnets.swap import swap
from .tasks import summed
from .two_stages import TwoStages, free_channels, has_two_stages, regions_of, two_stages


@TASKS.register_module()
class Detection:
    """Detectors whose heads give maps, of shape (batch, channels, height, width), at every level.

    Raises:
        TypeError: If no part of the detector gives what the whole returns, or that is no map.
        ValueError: If ``normalize`` is not the default: it is of logits.
    """

    def __init__(self, supernet: Supernet, normalize: str) -> None:
        if normalize != 'layer_norm':
            raise ValueError(
                f'model.normalize={normalize!r} is for the logits of classifiers. Leave it out: a '
                "detector's maps are normalised channel by channel over the positions"
            )
        refuse_untraced(supernet)
        self.heads = heads_of(supernet.model, supernet.inputs)
        with eval_mode(supernet.model), torch.no_grad():
            self.outputs(supernet.model, supernet.inputs[0])

    @staticmethod
    def prepare(model: Any) -> dict[str, Any]:
        times = {}
        if has_two_stages(model):
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
        if has_two_stages(model):
            return two_stages(model, inputs)
        return model(inputs, mode='tensor')

    def outputs(self, model: Any, inputs: Tensor) -> list[Tensor]:
        """Of shape (channels, positions of all images and levels), for each kind of map."""
        if has_two_stages(model):  # what is behind the proposals has its own
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
