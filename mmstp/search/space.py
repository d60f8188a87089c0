"""The architectures that can be chosen."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis.analysis import ChannelGraph
from ..analysis.groups import Group
from ..architecture import Architecture
from ..errors import ArchitectureError, SpaceError
from .stages import Stage, check_parts, find_stages, free_groups, nothing, read_widths, with_choices

WIDTHS = (0.3, 0.5, 0.7, 0.9, 1.0)
DIVISOR = 8
# choices that leave no part of a processor's vectors empty: fractions, and the multiple they have
FAST = {'cpu': ((0.25, 0.5, 0.75, 1.0), 16), 'gpu': ((0.25, 0.5, 0.75, 1.0), 32)}
CUT = 3


class SearchSpace:
    """Stages with their choices; knows neither weights nor costs.

    Args:
        graph: The analysis of the model.
        widths: Fractions of the channels to choose from; 1 is always among them. By the name of
            what is to run them fast, ``'cpu'`` or ``'gpu'``: quarters, of which channels are
            rounded up to multiples of 16 and 32 at least, whatever ``divisor`` says.
        divisor: Channels are rounded up to a multiple of it (or stay whole); heads, and groups of
            a convolution, to whole ones.
        depths: Whether blocks may be skipped.
        stages: Other choices for single stages, by name (``tools/search_space.py`` shows them):
            ``{'backbone.layer1': dict(widths=(0.5, 1.0), depths=(2, 3))}``.
        fix: Regular expressions; channels of layers whose path one of them matches stay whole.
        stem: Whether the stem may be pruned: the layers at the first layer's resolution and
            before the first block (in a network without blocks, the first layer). Where they
            are on a stage's residual stream, as in ResNet-18, they follow that stage.
        embedding: Whether the embedding of a transformer may be pruned: a residual stream over
            whose channels layers normalise. Width is heads and hidden channels without it.
        parts: Paths of modules beside the backbone (a neck, a head): their layers outside blocks
            are an entry of their own, instead of joining the stage of their resolution.
        times: How often the layers of a module run for one image, by its path, where the trace has
            them run once: heads of a detector that look at one region after the other. For costs.
        prune_slow: Whether widths that save no time (`slow_widths`) are left out, where there is a
            table of the latency: see `Supernet.use_latency`.
        cut: A network all of whose blocks are one chain, a ViT, is cut into this many stages, of
            lengths that differ by one at most (with fewer than two blocks for each, it is not).

    Raises:
        SpaceError: If an option is out of range or nothing is left to prune.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        widths: Sequence[float] | str = WIDTHS,
        divisor: int = DIVISOR,
        depths: bool = True,
        stages: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
        fix: Sequence[str] = (),
        stem: bool = False,
        embedding: bool = False,
        parts: Sequence[str] | None = None,
        times: Mapping[str, int] | None = None,
        cut: int = CUT,
        prune_slow: bool = False,
    ) -> None:
        if not isinstance(times, (Mapping, type(None))):
            raise SpaceError(f'space.times={times!r}: expected a dict of numbers by path')
        self.times = dict(times or {})
        numbers = {f'times[{path!r}]': number for path, number in self.times.items()}
        for name, value in {'divisor': divisor, 'cut': cut, **numbers}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SpaceError(f'space.{name}={value!r}: expected a whole number of at least 1')
        flags = dict(depths=depths, stem=stem, embedding=embedding, prune_slow=prune_slow)
        for name, value in flags.items():
            if not isinstance(value, bool):
                raise SpaceError(f'space.{name}={value!r}: expected True or False')
        if isinstance(widths, str):
            if widths not in FAST:
                raise SpaceError(
                    f'space.widths={widths!r}: expected a list of fractions in (0, 1], or one of '
                    f'{", ".join(map(repr, FAST))}'
                )
            widths, multiple = FAST[widths]
            divisor = math.lcm(divisor, multiple)
        self.graph, self.divisor, self.prune_slow = graph, divisor, prune_slow
        free, self.fixed = free_groups(graph, fix, stem, embedding)
        parts = parts or ()
        check_parts(graph, self.fixed, parts)
        found = find_stages(graph, free, read_widths('space.widths', widths), depths, cut, parts)
        self._choose_from(tuple(with_choices(found, stages or {})))

    def _choose_from(self, stages: tuple[Stage, ...]) -> None:
        graph, self.stages = self.graph, stages
        if all(len(s.depths) * len(s.widths) == 1 for s in self.stages):
            raise SpaceError(f'nothing in this model can be pruned: {nothing(graph, self.fixed)}')
        # per entry of a row
        self._choices: list[tuple[Any, ...]] = [
            *(stage.depths for stage in self.stages),
            *(stage.widths for stage in self.stages),
        ]
        self._full_units = np.array([group.units for group in graph.groups], dtype=np.int64)
        self._unit_tables = [np.array(self.kept(stage), dtype=np.int64) for stage in self.stages]
        whole = all((table == table[-1]).all() for table in self._unit_tables)
        if whole and all(len(stage.depths) == 1 for stage in self.stages):
            widest = max(group.channels for group in graph.groups)
            raise SpaceError(
                f'nothing in this model can be pruned: rounded up to a multiple of '
                f'space.divisor={self.divisor}, every width keeps all channels of every layer (at '
                f'most {widest}); '
                'choose a smaller divisor or smaller widths'
            )

    def without(self, widths: Mapping[str, Collection[float]]) -> SearchSpace:
        """The same space with fewer choices.

        Args:
            widths: Which are left out, by the name of a stage.
        """
        found = copy.copy(self)
        found._choose_from(
            tuple(
                replace(s, widths=tuple(w for w in s.widths if w not in widths.get(s.name, ())))
                for s in self.stages
            )
        )
        return found

    # --- choices ---------------------------------------------------------------------------------

    @property
    def largest(self) -> Architecture:
        """The dense model."""
        return self._of(choices[-1] for choices in self._choices)

    @property
    def smallest(self) -> Architecture:
        """The fewest blocks and channels."""
        return self._of(choices[0] for choices in self._choices)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Choices per entry of a row: the depths of all stages, then the widths."""
        return tuple(map(len, self._choices))

    @property
    def size(self) -> int:
        """How many architectures there are."""
        return math.prod(self.sizes)

    def sample(self, rng: random.Random) -> Architecture:
        """An architecture with every choice drawn uniformly."""
        return self._of(map(rng.choice, self._choices))

    def expand(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """A support architecture: every choice uniform over those not below (Eq. 6)."""
        return self._of(
            rng.choice([choice for choice in choices if choice >= own])
            for own, choices in self._entries(architecture)
        )

    def enumerate(self) -> Iterator[Architecture]:
        """All architectures, one by one."""
        return map(self._of, itertools.product(*self._choices))

    def check(self, architecture: Architecture | str | Sequence[Any]) -> Architecture:
        """The architecture, which may be given as text or nested lists, if it is a member.

        Raises:
            ArchitectureError: Naming the stage, the value met and the choices.
        """
        architecture = Architecture.from_nested(architecture)
        if len(architecture.depths) != len(self.stages):
            raise ArchitectureError(
                f'{architecture} has {len(architecture.depths)} stages, this space has '
                f'{len(self.stages)} ({", ".join(s.name for s in self.stages)}); '
                f'the dense network is {self.largest}'
            )
        chosen = zip(architecture.depths, architecture.widths, strict=True)
        for stage, (depth, width) in zip(self.stages, chosen, strict=True):
            for value, choices, what in (
                (depth, stage.depths, 'blocks'),
                (width, stage.widths, 'of its channels'),
            ):
                if value not in choices:
                    raise ArchitectureError(
                        f'{architecture}: stage {stage.name!r} cannot keep {value} {what}; '
                        f'choices: {choices}'
                    )
        return architecture

    # --- rows of choice indices, for many architectures at once ----------------------------------

    def encode(self, architecture: Architecture) -> NDArray[np.int64]:
        """The indices of the choices, shape (2 * stages,)."""
        return np.array([choices.index(own) for own, choices in self._entries(architecture)])

    def decode(self, row: Sequence[int]) -> Architecture:
        """The architecture of a row of indices."""
        return self._of(choices[i] for choices, i in zip(self._choices, row, strict=True))

    def _of(self, entries: Iterable[Any]) -> Architecture:
        """The architecture with these depths and widths, one behind the other."""
        values, n = tuple(entries), len(self.stages)
        return Architecture(values[:n], values[n:])

    def _entries(self, architecture: Architecture) -> Iterable[tuple[Any, tuple[Any, ...]]]:
        """What a member of the space has for each entry of a row, and the choices."""
        architecture = self.check(architecture)
        own = (*architecture.depths, *architecture.widths)
        return zip(own, self._choices, strict=True)

    def all_rows(self) -> NDArray[np.int64]:
        """Every architecture as a row of indices, shape (size, 2 * stages)."""
        return np.stack(np.unravel_index(np.arange(self.size), self.sizes), axis=1)

    def distinct(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """One row for each network, sorted.

        Where rounding gives two widths of a stage the same channels, the smaller one stands for
        both.
        """
        found = rows.copy()
        for column, table in enumerate(self._unit_tables, len(self.stages)):
            _, first, of = np.unique(table, axis=0, return_index=True, return_inverse=True)
            found[:, column] = first[of.ravel()][rows[:, column]]
        return np.unique(found, axis=0)

    # --- what an architecture keeps --------------------------------------------------------------

    def units(self, group: Group, width: float) -> int:
        """Units kept of a group: channels rounded up to a multiple of the divisor.

        Whole groups of a convolution and whole heads are kept as they are where the divisor is no
        multiple of them.
        """
        divides = self.divisor % group.unit_size == 0
        step = self.divisor if divides else group.unit_size
        # the subtraction keeps 0.55 * 800 = 440.00000000000006 at 440
        channels = math.ceil(width * group.channels / step - 1e-9) * step
        return min(channels // group.unit_size, group.units)

    def kept(self, stage: Stage) -> list[list[int]]:
        """Units kept of each group of a stage, a list for each of its widths."""
        groups = [self.graph.groups[group] for group in stage.groups]
        return [[self.units(group, width) for group in groups] for width in stage.widths]

    def group_units(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Units kept of every group of the graph, shape (architectures, groups)."""
        units = np.tile(self._full_units, (len(rows), 1))
        widths = rows.T[len(self.stages) :]
        for stage, table, chosen in zip(self.stages, self._unit_tables, widths, strict=True):
            units[:, list(stage.groups)] = table[chosen]
        return units

    def units_of(self, architecture: Architecture) -> list[int]:
        """Units kept of every group of the graph, for one architecture."""
        units: list[int] = self.group_units(self.encode(architecture)[None])[0].tolist()
        return units

    def skipped(self, architecture: Architecture) -> tuple[str, ...]:
        """The paths of the blocks that the architecture leaves out."""
        architecture = self.check(architecture)
        return tuple(
            path
            for stage, depth in zip(self.stages, architecture.depths, strict=True)
            for chain in stage.chains
            for path in chain[depth:]
        )

    def min_depth(self) -> dict[str, tuple[int, int]]:
        """For every skippable block its stage's index and the least depth that keeps it."""
        return {
            path: (index, position + 1)
            for index, stage in enumerate(self.stages)
            for chain in stage.chains
            for position, path in enumerate(chain)
            if position
        }
