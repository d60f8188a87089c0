"""What `coverage.py` finds out about one network."""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import math
import random
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from coverage_network import Network
from processes import in_process
from torch import Tensor, nn

from mmstp import Architecture, Supernet
from mmstp.foreign import pytree
from mmstp.subnets.check import Verifier

SECONDS = 120.0
RANDOM = 3  # architectures drawn besides the smallest
BATCHES = (1, 2, 5)
NO_OTHER_SIZE = 'dense neither'


def measure(network: Network, seconds: float = SECONDS) -> dict[str, Any]:
    """`steps` of a network, in a process of its own; see `in_process`."""
    if network.excluded:
        return {}
    found = in_process(functools.partial(steps, network, seconds), seconds)
    return {**found, 'log': found['log'][-2000:]} if 'log' in found else found


def steps(network: Network, seconds: float = SECONDS) -> Iterator[dict[str, Any]]:
    """What is found about a network, as soon as it is found: entries of the result of `measure`."""
    start = time.perf_counter()
    yield {'step': 'built'}
    assert network.build is not None
    model, inputs = network.build()
    model.eval()  # which returns None for some of mmpretrain's backbones
    generator = torch.Generator().manual_seed(0)
    fill(model, generator)
    yield {'step': 'converted', 'inputs': [list(x.shape[1:]) for x in tensors(inputs)]}
    before = time.perf_counter()
    supernet = Supernet(model, inputs)
    analysis = time.perf_counter() - before
    yield {'step': 'run', 'seconds': analysis, **described(supernet)}
    rng = random.Random(0)
    space = supernet.space
    architectures = [space.smallest, *(space.sample(rng) for _ in range(RANDOM))]
    batches = possible_batches(supernet, generator)
    before = time.perf_counter()
    difference = largest_difference(supernet, architectures, list(batches.values()))
    runs = time.perf_counter() - before
    yield {'batches': list(batches), 'difference': difference}
    # what follows is left out where it would not be done in time: fewer runs than those, and a
    # verifier, which takes about as long as the analysis, that made one or more
    if time.perf_counter() - start + runs < seconds:
        yield {'step': 'run at another size'}
        widest = Architecture(space.largest.depths, space.smallest.widths)  # with every block
        yield {'other': at_another_size(supernet, [*architectures, widest], generator)}
    if time.perf_counter() - start + analysis < seconds:
        yield {'step': 'compared with its masked trace'}
        yield {'masking': masking(supernet, architectures[1:])}


def described(supernet: Supernet) -> dict[str, Any]:
    """What the space of a supernet holds, and what it leaves whole."""
    space, graph = supernet.space, supernet.graph
    rows = [space.encode(space.smallest), space.encode(space.largest)]
    narrow, full = space.group_units(torch.tensor(rows).numpy())
    smallest, dense = supernet.cost.macs([space.smallest, space.largest]).tolist()
    return {
        'stages': len(space.stages),
        'groups': int((narrow < full).sum()),
        'blocks': len(space.min_depth()),
        'smallest': smallest / dense,
        'fixed': collections.Counter(space.fixed.values()),
        'unskippable': by_reason(graph.unskippable),
        'unknown': {name: len(paths) for name, paths in graph.unknown.items()},
        'one_batch': supernet.one_batch,
    }


def by_reason(modules: dict[str, str]) -> dict[str, list[str]]:
    """Paths of modules, by the reason that each has."""
    found = collections.defaultdict(list)
    for path, reason in modules.items():
        found[reason].append(path)
    return dict(found)


# --- inputs --------------------------------------------------------------------------------------


def batch(inputs: Any, count: int, generator: torch.Generator) -> Any:
    """The inputs with other values, for so many images or texts.

    Tensors that do not begin with the size of the first one's batch stay.
    """
    size = tensors(inputs)[0].shape[:1]

    def drawn(x: Tensor) -> Tensor:
        return _drawn(x, (count, *x.shape[1:]), generator) if x.shape[:1] == size else x

    return pytree.tree_map_only(Tensor, drawn, inputs)


def larger(inputs: Any, generator: torch.Generator) -> Any:
    """The inputs with images 1.3 by 1.6 times as large, or half again as many tokens.

    None where it is neither images nor tokens that all tensors are.
    """
    shapes = {tuple(x.shape) for x in tensors(inputs)}
    shape = shapes.pop()
    if shapes or len(shape) not in (2, 4):
        return None
    if len(shape) == 4:
        sides = zip(shape[2:], (1.3, 1.6), strict=True)
        shape = (*shape[:2], *(-(-int(side * factor) // 32) * 32 for side, factor in sides))
    else:
        shape = (shape[0], shape[1] * 3 // 2)
    return pytree.tree_map_only(Tensor, lambda x: _drawn(x, shape, generator), inputs)


def _drawn(x: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal numbers; for whole ones such as the example has."""
    if x.is_floating_point():
        return torch.randn(shape, generator=generator)
    return x.flatten()[torch.randint(x.numel(), shape, generator=generator)]


def possible_batches(supernet: Supernet, generator: torch.Generator) -> dict[int, Any]:
    """Inputs for `BATCHES`; that of the example alone where the network takes no other."""
    own = len(tensors(supernet.inputs)[0])
    sizes: Collection[int] = BATCHES if supernet.one_batch is None else (own,)
    return {size: batch(supernet.inputs, size, generator) for size in sizes}


# --- comparisons ---------------------------------------------------------------------------------


@torch.no_grad()
def largest_difference(
    supernet: Supernet, architectures: Sequence[Architecture], batches: Sequence[Any]
) -> float:
    """Between the outputs of active subnets and those of their exports.

    Args:
        supernet: Of the subnets.
        architectures: Of the subnets.
        batches: Positional arguments for each time that they are called.
    """
    gaps = [0.0]
    for architecture in architectures:
        exported = supernet.export(architecture)
        for inputs in batches:
            with supernet.activate(architecture):
                active = tensors(supernet.model(*_clones(inputs)))
            if not active:
                raise ValueError('it returns no tensor')
            for a, b in zip(active, tensors(exported(*_clones(inputs))), strict=True):
                if a.shape != b.shape:
                    raise ValueError(f'an output has shape {a.shape}, exported {b.shape}')
                if a.numel():
                    gaps.append((a.double() - b.double()).abs().max().item())
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)


@torch.no_grad()
def at_another_size(
    supernet: Supernet, architectures: Sequence[Architecture], generator: torch.Generator
) -> str | None:
    """Whether subnets and their exports agree on inputs of another size.

    Returns ``'yes'``, `NO_OTHER_SIZE` where the dense network does not take it, or the reason; None
    where `larger` does not say what another size is.
    """
    inputs = larger(supernet.inputs, generator)
    if inputs is None:
        return None
    try:
        # there are forwards that keep what a size gave
        copy.deepcopy(supernet.model)(*_clones(inputs))
    except Exception:  # whatever it says of the size
        return NO_OTHER_SIZE
    if supernet.one_size:
        return supernet.one_size
    try:
        difference = largest_difference(supernet, architectures, [inputs])
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    return 'yes' if difference == 0 else f'exports differ by {difference:.1e}'


def masking(supernet: Supernet, architectures: Sequence[Architecture]) -> str:
    """How a sliced subnet differs from the dense trace with its channels masked; '' for not."""
    verifier = Verifier(supernet.model, supernet.graph, supernet.inputs)
    for architecture in architectures:
        row = supernet.space.encode(architecture)
        units = supernet.space.group_units(row[None])[0]
        if reason := verifier.difference(supernet._plan(architecture), units):
            return reason
    return ''


def fill(model: nn.Module, generator: torch.Generator) -> None:
    """Random weights and statistics: fresh networks have branches that start at zero."""
    statistics = (pair for pair in model.named_buffers() if 'running_' in pair[0])
    for name, tensor in itertools.chain(model.named_parameters(), statistics):
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            value = noise * math.sqrt(2 / max(1, math.prod(tensor.shape[1:])))
        elif name.endswith(('bias', 'running_mean')):
            value = noise * 0.1
        else:
            value = 1 + noise.clamp(-2, 2) * 0.2
        tensor.data.copy_(value)


def tensors(values: Any) -> list[Tensor]:
    """The tensors in whatever a model takes or returns."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _clones(inputs: Any) -> Any:
    """Tensors of their own: there are forwards that change theirs."""
    return pytree.tree_map_only(Tensor, torch.clone, inputs)
