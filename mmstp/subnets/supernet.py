"""A model together with its search space: every subnet of it can be run and cut out."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..architecture import Architecture
from ..config_fields import options_of, refuse_unknown
from ..errors import LatencyError, SpaceError
from ..foreign import pytree
from ..search.cost import CostModel
from ..search.latency_table import LatencyTable
from ..search.slow_widths import slow_widths
from ..search.space import SearchSpace
from .compact_spec import CompactSpec, stage_shapes
from .convert import convert
from .cut import cut_out, describe
from .importance import order_channels
from .norm_statistics import calibrate, norms_with_statistics
from .plan import Selection, SubnetPlan, named_tensors, plan_subnet
from .refuse import check_intact


class Supernet:
    """Weight sharing: the dense model is the main network, its first blocks and channels subnets.

    Layers of ``model`` become dynamic in place (`mmstp.subnets.modules`); its state-dict keys,
    Parameter objects, modes and outputs do not change.

    Args:
        model: Any module that `torch.export` can follow.
        inputs: An example input: a tensor, a tuple of positional arguments, or a dict of arguments
            by name; see `mmstp.analysis.inputs.arguments`. Costs are counted for these.
        fix_outputs: Keep the channels of the model's outputs whole.
        **space: Options of `SearchSpace`.

    Attributes:
        model: The model.
        space: The architectures that can be chosen.
        cost: Their multiply-adds, parameters and activations.
        slow_widths: By the name of a stage, those that save no time; known from `use_latency` on.
        norm_statistics: Running statistics of norm layers that subnets have for themselves, by
            state-dict key; those of the main network serve the others. See `calibrate`.
        inputs: The positional arguments, with tensors on the device and in the precision of the
            model's parameters.
        one_size: Why subnets may not run on inputs of another size than the example's; None where
            they do, wherever the dense model does.
        one_batch: Why they may not run on batches of another size; None where they do.

    Raises:
        FieldError: If the inputs are not what a model is called with.
        TraceError: If the model cannot be traced.
        SpaceError: If nothing can be pruned, or an option is wrong.
        SupernetError: If the model is wrapped (DDP), compiled, scripted or without values, if it
            recomputes blocks in the backward pass (``with_cp=True``), or is part of a supernet
            already.
        VerificationError: If the trace does not compute what the model does.

    Where an architecture is asked for, its text or nested lists will do.

    Example:
        >>> supernet = Supernet(model, inputs=torch.zeros(1, 3, 224, 224))
        >>> arch = supernet.space.sample(random.Random(0))
        >>> with supernet.activate(arch):
        ...     y = model(x)
        >>> compact = supernet.export(arch)
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        fix_outputs: bool = True,
        **space: Any,
    ) -> None:
        refuse_unknown('space', space, options_of(SearchSpace))
        made = convert(model, inputs, fix_outputs, space)
        self.model, self.inputs = model, made.inputs
        self.graph, self.space = made.graph, made.space
        self.one_size, self.one_batch = made.one_size, made.one_batch
        self.cost = CostModel(self.graph, self.space)
        self.slow_widths: dict[str, tuple[float, ...]] = {}
        self.norm_statistics: dict[Architecture, dict[str, Tensor]] = {}
        self._active = made.active
        self._plan = self._cached_plans()

    def use_latency(self, path: str | Path | None) -> None:
        """Adds the metric ``'latency'``; with ``space.prune_slow`` slow widths leave the space.

        Args:
            path: What ``tools/latency_table.py`` measured, of the space before that. None: nothing
                is added.

        Raises:
            LatencyError: If it cannot be read, is of another network or space, or holds too little.
            SpaceError: If there is nothing to tell slow widths by.
        """
        if path is None:
            if self.space.prune_slow:
                raise SpaceError(
                    'space.prune_slow=True: which widths are slow is not known without a table of '
                    "the latency; give model.latency='latency.json', which tools/latency_table.py "
                    'writes'
                )
            return
        if not isinstance(path, (str, Path)):
            raise LatencyError(
                f'{path!r} is no path: expected that of a file that tools/latency_table.py wrote, '
                'or None'
            )
        table = LatencyTable.read(path)
        try:
            self.cost.use_latency(table)
        except LatencyError as error:
            raise LatencyError(f'{str(path)!r}: {error}') from error
        self.slow_widths = slow_widths(self.space, self.cost)
        if self.space.prune_slow:
            self.space = self.space.without(self.slow_widths)
            self.cost = self.cost.within(self.space)

    def __deepcopy__(self, memo: dict[int, Any]) -> Supernet:
        """Copies the model; what is known about it does not change and is shared."""
        memo[id(self)] = copied = copy.copy(self)
        copied.model = copy.deepcopy(self.model, memo)
        copied._active = copy.deepcopy(self._active, memo)
        copied.norm_statistics = copy.deepcopy(self.norm_statistics, memo)
        copied._plan = copied._cached_plans()
        return copied

    def _cached_plans(self) -> Callable[[Architecture], SubnetPlan]:
        cached = functools.lru_cache(maxsize=64)(self._make_plan)
        return lambda architecture: cached(self.space.check(architecture))

    def _make_plan(self, architecture: Architecture) -> SubnetPlan:
        units, skipped = self._units(architecture), self.space.skipped(architecture)
        with self._active_plan(None):  # the dense attributes are asked for
            plan = plan_subnet(self.model, self.graph, units, skipped)
        return replace(plan, norm_statistics=self.norm_statistics.get(architecture, {}))

    def _units(self, architecture: Architecture) -> list[int]:
        return self.space.units_of(architecture)

    @contextmanager
    def activate(self, architecture: Architecture) -> Iterator[nn.Module]:
        """Inside, the model is the subnet. Nested use and exceptions restore what was before.

        Raises:
            ArchitectureError: If the architecture is not a member of the space.
        """
        with self._active_plan(self._plan(architecture)):
            yield self.model

    @contextmanager
    def _active_plan(self, plan: SubnetPlan | None) -> Iterator[None]:
        before, self._active.plan = self._active.plan, plan
        try:
            yield
        finally:
            self._active.plan = before

    def kept(self, architecture: Architecture) -> dict[str, Tensor]:
        """Which entries of the main network's tensors a subnet keeps: booleans by state-dict key.

        Raises:
            ArchitectureError: If the architecture is not a member of the space.
        """
        plan = self._plan(architecture)
        return {key: plan.kept(key, tensor) for key, tensor in named_tensors(self.model).items()}

    def narrow(self, architecture: Architecture, key: str, tensor: Tensor) -> Tensor:
        """What a subnet has of a tensor that is shaped as the main network's of that key.

        Such as a gradient, or an optimizer's average of them.

        Raises:
            ArchitectureError: If the architecture is not a member of the space.
        """
        return self._plan(architecture).narrow(key, tensor)

    def compact_spec(self, architecture: Architecture) -> CompactSpec:
        """The description of a subnet as a network of its own."""
        spec = describe(self.model, self._plan(architecture))
        stages = (stage_shapes(self.space, stage) for stage in self.space.stages)
        return replace(spec, stages=tuple(stages))

    def export(self, architecture: Architecture) -> nn.Module:
        """The subnet as a static network of its own, with copies of its weights.

        Its output equals that of the active subnet. No dynamic class is left inside.

        Raises:
            ArchitectureError: If the architecture is not a member of the space.
        """
        return cut_out(self.model, self._plan(architecture))

    def calibrate(
        self,
        architecture: Architecture,
        batches: Iterable[Any],
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> int:
        """Gives a subnet running statistics of its own: those over ``batches``.

        The main network's do not change. The subnet has its own from then on, active and exported.

        Args:
            architecture: The subnet's.
            batches: See `mmstp.calibrate`.
            forward: Runs the subnet on a batch; by default it is called with it.

        Returns:
            How many norm layers have statistics.

        Raises:
            ArchitectureError: If the architecture is not a member of the space.
            ValueError: If there are norm layers and not a single batch.
        """
        network = self.export(architecture)
        count = calibrate(network, batches, forward and functools.partial(forward, network))
        self.set_norm_statistics(
            architecture,
            {
                f'{path}.{name}' if path else name: buffer
                for path, norm in norms_with_statistics(network)
                for name, buffer in norm.named_buffers(recurse=False)
            },
        )
        return count

    def set_norm_statistics(
        self, architecture: Architecture, statistics: dict[str, Tensor]
    ) -> None:
        """Gives a subnet running statistics that were estimated before.

        Raises:
            ArchitectureError: If the architecture is not a member of the space.
        """
        self.norm_statistics[self.space.check(architecture)] = statistics
        self._plan = self._cached_plans()

    def pad(self, outputs: Any, architecture: Architecture) -> Any:
        """Outputs of a subnet in the dense model's shapes: zeros where channels were left out.

        Args:
            outputs: What the model returned while the subnet was active.
            architecture: The subnet's.
        """
        units = self._units(architecture)
        leaves, spec = pytree.tree_flatten(outputs)
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for i, dims in zip(tensors, self.graph.traced[0].outputs, strict=True):
            for dim, dim_map in dims.items():
                selection = Selection(dim, dim_map.kept(units))
                leaves[i] = selection.pad(leaves[i], len(dim_map.group))
        return pytree.tree_unflatten(leaves, spec)

    def order_channels(self, norm: int = 2, by: Mapping[str, Tensor] | None = None) -> None:
        """Sorts the channels of every group by importance, so that the first are worth keeping.

        The main network computes the same function as before; see `channel_orders`.

        Args:
            norm: 1 or 2: the sum of magnitudes or of squares.
            by: By state-dict key, the weights whose magnitudes count, such as those after a
                training where the model holds those before it; by default the model's own.
        """
        order_channels(self.model, self.graph, norm, by)

    def describe(self, architecture: Architecture) -> dict[str, Any]:
        """What a subnet costs, in plain types: of every metric the number and its ratio."""
        architecture = self.space.check(architecture)
        found: dict[str, Any] = {'architecture': str(architecture)}
        for metric in self.cost.metrics:
            own, dense = self.cost.count([architecture, self.space.largest], metric).tolist()
            found |= {metric: own, f'{metric}_dense': dense, f'{metric}_ratio': own / dense}
        return found

    def check_intact(self) -> None:
        """Whether the layers are still those made dynamic.

        Raises:
            SupernetError: Naming the first that was replaced.
        """
        check_intact(self.model, self.graph)
