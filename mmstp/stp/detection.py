"""Detectors of mmdet: what their heads give, and how it correlates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..analysis.eval_state import eval_mode
from ..analysis.trace import first_keys, module_stack, operator_name
from ..errors import ModelError, OptionError
from ..foreign import Convolution, pytree
from ..registry import TASKS
from ..subnets.supernet import Supernet
from ..subnets.swap import swap
from .deformable_attention import know_deformable_attention
from .tasks import summed
from .two_stages import TwoStages, free_channels, has_two_stages, regions_of, two_stages
from .whole_images import take_whole_images, whole_images

_BEHIND_A_CHOICE = (
    'each network chooses its own queries among the positions, and what comes behind the choice '
    '(the decoder) is not compared with that of the main network'
)


@TASKS.register_module()
class Detection:
    """Detectors whose heads give maps at every level, or numbers of queries behind every layer.

    Raises:
        ModelError: If no part of the detector gives what the whole returns, or that is neither.
        OptionError: If ``normalize`` is not the default: it is of logits.
    """

    def __init__(self, supernet: Supernet, normalize: str) -> None:
        if normalize != 'layer_norm':
            raise OptionError(
                f'model.normalize={normalize!r} is for the logits of classifiers. Leave it out: a '
                "detector's maps are normalised channel by channel over the positions"
            )
        refuse_untraced(supernet)
        self.heads = heads_of(supernet.model, supernet.inputs)
        chosen_by = before_a_choice(supernet, self.heads)
        self.compared = chosen_by or self.heads
        self.needs_target_ce = _BEHIND_A_CHOICE if chosen_by else ''
        with eval_mode(supernet.model), torch.no_grad():
            (image,) = supernet.inputs
            batches = image, torch.cat([image, image])
            given = [
                pytree.tree_leaves(self._given(supernet.model, batch, None)) for batch in batches
            ]
        self.batch_dims = list(map(batch_dim, *given))

    @staticmethod
    def prepare(model: Any) -> dict[str, Any]:
        times = {}
        if has_two_stages(model):
            swap(model, TwoStages())
            times = regions_of(model)
        else:
            take_whole_images(model)
        free_channels(model)
        know_deformable_attention(model)
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
        return model(inputs, whole_images(inputs), mode='tensor')

    def outputs(self, model: Any, inputs: Tensor, data_samples: list[Any]) -> list[Tensor]:
        """Of shape (channels, positions of all images and levels), for each kind of number."""
        return self._rows(self._given(model, inputs, data_samples))

    def _given(self, model: Any, inputs: Tensor, data_samples: list[Any] | None) -> list[Any]:
        """What the parts give that are compared; what comes behind them does not run."""
        mode = 'loss' if model.training else 'tensor'  # queries that only training has come with it
        with caught(model, self.compared, stop=True) as found:
            model(inputs, copy.deepcopy(data_samples), mode=mode)
        return [found[path][0] for path in self.compared]

    def losses_and_outputs(
        self,
        model: Any,
        once_more: AbstractContextManager[Any],
        inputs: Tensor,
        data_samples: list[Any],
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        samples = copy.deepcopy(data_samples)  # some heads change what they are given
        with caught(model, self.compared) as found:
            losses = model(inputs, samples, mode='loss')
        return summed(losses), self._rows([found[path][0] for path in self.compared])

    def _rows(self, given: Iterable[Any]) -> list[Tensor]:
        dims = iter(self.batch_dims)
        return [rows for output in given for rows in by_channel(output, dims)]

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


def by_channel(output: Any, batch_dims: Iterator[int]) -> Iterator[Tensor]:
    """What a head returns, as rows of one channel each: a kind of number after the other.

    The levels of a kind (a list of maps with as many channels) are put side by side.

    Args:
        output: Maps or numbers of queries, in lists.
        batch_dims: Of each tensor the dimension of the images.
    """
    kinds = output if isinstance(output, (list, tuple)) else [output]
    for kind in kinds:
        rows = [_rows_of(level, next(batch_dims)) for level in pytree.tree_leaves(kind)]
        if len({len(row) for row in rows}) == 1:
            yield torch.cat(rows, dim=1)
        else:
            yield from rows


def _rows_of(level: Tensor, batch: int) -> Tensor:
    """Shape (layers and channels, positions of all images).

    Channels are next to the images in maps, of shape (…, batch, channels, height, width), and last
    where there are positions of one kind, (…, batch, queries, numbers); before are layers.
    """
    channels = batch + 1 if level.dim() == batch + 4 else -1
    return level.movedim(channels, batch).flatten(0, batch).flatten(1)


def batch_dim(one: Any, two: Any) -> int:
    """The dimension that counts the images, of what a head gives for one and for two.

    Raises:
        ModelError: If it is something else than maps or numbers of queries.
    """
    if isinstance(one, Tensor) and one.dim() == two.dim():
        sizes = zip(one.shape, two.shape, strict=True)
        (dim, *others) = [dim for dim, (own, other) in enumerate(sizes) if own != other] or [-1]
        if dim >= 0 and not others and one.dim() - dim in (3, 4):
            return dim
    what = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
    raise ModelError(
        f'a head gives {what}, neither maps of shape (batch, channels, height, width) nor numbers '
        'of queries of shape (layers, batch, queries, numbers), which the distillation compares'
    )


def refuse_untraced(supernet: Supernet) -> None:
    """Raises a `ModelError` for a layer that the trace does not reach: it could not be narrowed.

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
            raise ModelError(
                f'{type(supernet.model).__name__}: {path} ({type(module).__name__}) does not run '
                'where the maps of the heads are worked out, so it is unknown what it reads, and a '
                'subnet could not be trained. Detectors are accepted all of whose layers run then'
            )


def heads_of(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[str, ...]:
    """The children of a detector that give what it returns.

    Raises:
        ModelError: If there is none.
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
    raise ModelError(
        f'{type(model).__name__} returns nothing that one of its parts gives: there is nothing '
        'that a subnet could be compared by'
    )


def before_a_choice(supernet: Supernet, heads: Sequence[str]) -> tuple[str, ...]:
    """Parts of the heads that score positions of which the best become queries; else none.

    Each network chooses others, so what is worked out of these cannot be compared.
    """
    found: dict[str, None] = {}
    for node in supernet.graph.traced[0].trace.module.graph.nodes:
        if node.op == 'call_function' and operator_name(node) == 'aten::topk':
            return tuple(found)
        paths = module_stack(node).values()
        inside = [path for path in paths if any(path.startswith(f'{head}.') for head in heads)]
        found.update(dict.fromkeys(inside[:1]))
    return ()


class _Enough(Exception):
    """All parts have returned something."""


@contextmanager
def caught(
    model: nn.Module, paths: Iterable[str], stop: bool = False
) -> Iterator[dict[str, list[Any]]]:
    """Inside, what parts of a model return is kept, by path; a call of ``forward`` counts too.

    With ``stop`` all that is inside ends as soon as every part has returned something.
    """
    found: dict[str, list[Any]] = {path: [] for path in paths}

    def keep(path: str, output: Any) -> None:
        found[path].append(output)
        if stop and all(found.values()):
            raise _Enough

    with suppress(_Enough), ExitStack() as stack:
        for path in found:
            stack.enter_context(_keeping(model.get_submodule(path), partial(keep, path)))
        yield found


@contextmanager
def _keeping(part: nn.Module, keep: Callable[[Any], None]) -> Iterator[None]:
    own, before = part.forward, dict(vars(part))

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        keep(output)
        return output

    vars(part)['forward'] = forward
    try:
        yield
    finally:
        if 'forward' in before:
            vars(part)['forward'] = before['forward']
        else:
            del vars(part)['forward']
