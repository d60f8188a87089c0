"""Checks of a supernet against its trace, done once when it is made.

Two ways to one output: the model's own forward with narrow layers, and the traced graph of the
dense model with the dropped channels' weights set to zero. They share neither the slicing nor the
model's Python code, so a wrong index map or a size that the code holds as a number shows up. What
differs is found kind by kind, and has to stay whole.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.analysis import ChannelGraph
from ..analysis.eval_state import eval_mode
from ..analysis.scratch import (
    clones,
    copied,
    in_precision,
    random_like,
    randomize,
    set_precision,
    surrounded,
)
from ..errors import VerificationError
from ..foreign import BatchNorm
from .apart import TOLERANCE, Apart, compared
from .cut import cut_out
from .masked import masked_outputs, outputs_and_trace, tensors_of
from .modules import subnet_of
from .plan import DENSE, SubnetPlan
from .trained import IN_TRAINING, trained_difference

FAILS = 'its forward fails when narrowed'
CUT_OUT = 'cut out, '
TRACE_FAILS = 'its trace fails to run: '
OTHER_BATCH = 'for a batch of another size (two example inputs tell it from channels): '
TRAINING = (True,)  # modes, for `Verifier.difference`
BOTH = (False, True)


class Verifier:
    """A randomised copy of a model, run both ways.

    Args:
        model: A model whose layers have been made dynamic; not touched.
        graph: Its analysis.
        inputs: Its positional arguments, of the size of the trace.
        traced: Which of the analysis' traces it is held against.

    Attributes:
        one_batch: Why batches of another size could not be tried: what the dense model does with
            them. None where they were, or have not been yet.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, inputs: Sequence[Any], traced: int = 0
    ) -> None:
        self._graph, self._traced = graph, graph.traced[traced]
        self._name = type(model).__name__
        self._model = copied(model)
        self._subnet = subnet_of(self._model)
        self._live = _named(self._model, self._traced.trace.live)
        generator = torch.Generator().manual_seed(0)
        self._inputs = random_like(tuple(inputs), generator)
        self._others = random_like(tuple(inputs), generator)
        randomize(self._model, generator)
        self._fresh = copied(self._model)  # as it is before anything ran in train mode
        self.one_batch: str | None = None

    @property
    def supplied(self) -> set[str]:
        """Paths of modules whose code gave sizes that were not the subnet's."""
        return self._subnet.supplied

    def check_outputs(self) -> None:
        """Whether the outputs can tell subnets apart.

        Raises:
            VerificationError: If they are whole numbers or booleans alone, such as class ids.
        """
        kinds = {value.dtype for value in self._traced.trace.returned()}
        if not any(kind.is_floating_point or kind.is_complex for kind in kinds):
            raise VerificationError(
                f'{self._name} returns {", ".join(map(str, kinds)) or "no tensor"} alone, which '
                'does not tell whether a subnet computes what it should: give the part of it that '
                'returns scores or features'
            )

    def check_dense(self) -> None:
        """Whether the trace computes what the dense model does.

        Raises:
            VerificationError: If not.
        """
        live, self._live = self._live, []
        reason = self.difference(DENSE, self._all_units())
        if reason:
            where = '' if reason.startswith(TRACE_FAILS) else self._first_apart() or ''
            raise VerificationError(
                f'the trace of {self._name} does not compute what the model does ({reason}'
                f'{where and f"; the first module that differs is {where}"}): its forward depends '
                'on values, on chance or on its own state'
            )
        self._live = live

    def _all_units(self) -> list[int]:
        return [group.units for group in self._graph.groups]

    def _first_apart(self) -> str | None:
        """The first module whose output is not the trace's."""
        inputs = in_precision(_dtype(self._model), self._inputs)
        with suppress(Exception):  # it fails to run, which the reason says already
            for path, output, expected in outputs_and_trace(
                self._model, self._traced.trace, inputs
            ):
                if compared([output], [expected], TOLERANCE[_dtype(self._model)]):
                    return path
        return None

    def difference(
        self, plan: SubnetPlan, units: Sequence[int], modes: Sequence[bool] = ()
    ) -> str | None:
        """How the two ways disagree for a subnet.

        That is in eval mode, without gradients, for the inputs. In the ``modes`` it is for a batch
        of another size and with gradients. In train mode norms and dropout stay in eval mode: what
        else depends on the mode has to give what it gives the dense model there.

        Args:
            plan: The subnet's.
            units: Units that it keeps of every group.
            modes: `TRAINING`, `BOTH` or none.

        Returns:
            None where they agree.
        """
        found: Apart | None = None
        for dtype in (torch.float32, torch.float64):
            set_precision(self._model, dtype)
            inputs = in_precision(dtype, self._inputs)
            narrow, before = self._run(plan, inputs), found
            found = self._from_masked(narrow, plan, units, inputs, TOLERANCE[dtype])
            for training in modes if found is None else ():
                found = found or self._in_batch(narrow, plan, inputs, TOLERANCE[dtype], training)
            if found is not None and found.raises and before is not None:
                return before.reason  # float32 is written into the model's code
            if found is None or not found.rounding:
                break
        return None if found is None else found.reason

    def export_difference(self, plan: SubnetPlan) -> str | None:
        """How a subnet that is cut out differs from the active one; None where it does not.

        A network may ask for the classes of its blocks, or have others watch them.
        """
        dtype = _dtype(self._model)
        inputs = in_precision(dtype, self._inputs)
        narrow = self._run(plan, inputs)
        if isinstance(narrow, Apart):
            return narrow.reason
        try:
            network = cut_out(self._model, plan)
            with eval_mode(network, _named(network, self._traced.trace.live)), torch.no_grad():
                static = tensors_of(network(*clones(inputs)))
        except Exception as error:
            return f'{CUT_OUT}its forward fails: {type(error).__name__}: {error}'
        found = compared(static, narrow, TOLERANCE[dtype])
        return None if found is None else CUT_OUT + found.reason

    def trained_difference(self, plan: SubnetPlan) -> str | None:
        """How the two differ after a step of training; None where they do not, or cannot train."""
        others = None if self.one_batch else self._others
        return trained_difference(self._fresh, plan, self._inputs, others)

    def _from_masked(
        self,
        narrow: list[Tensor] | Apart,
        plan: SubnetPlan,
        units: Sequence[int],
        inputs: tuple[Any, ...],
        tolerance: float,
    ) -> Apart | None:
        """What the active subnet gave, and what the masked trace gives."""
        if isinstance(narrow, Apart):
            return narrow
        try:
            masked = masked_outputs(self._model, self._graph, self._traced, plan, units, inputs)
        except Exception as error:  # a trace that lacks what the exporter cannot express
            return Apart(f'{TRACE_FAILS}{type(error).__name__}: {error}', raises=True)
        return compared(narrow, masked, tolerance)

    def _in_batch(
        self,
        narrow: list[Tensor] | Apart,
        plan: SubnetPlan,
        inputs: tuple[Any, ...],
        tolerance: float,
        training: bool,
    ) -> Apart | None:
        """What the active subnet gave, and what it gives for the same inputs in a larger batch."""
        batch = surrounded(inputs, in_precision(_dtype(self._model), self._others))
        found = _ends_apart(narrow, self._run(plan, batch, training, True), tolerance)
        if found is None:
            return None
        whole, one = self._run(DENSE, batch, training, True), self._run(DENSE, inputs)
        dense = _ends_apart(one, whole, tolerance)
        if dense is None or (found.raises and not dense.raises):
            where = IN_TRAINING if training else OTHER_BATCH
            return replace(found, reason=where + found.reason)
        again = self._run(DENSE, inputs)
        if isinstance(one, list) and isinstance(again, list) and compared(again, one, tolerance):
            raise VerificationError(
                f'{self._name} gives another output each time it is called with the same inputs in '
                'eval mode: its forward depends on chance or on its own state'
            )
        if not training:
            self.one_batch = f'the dense network: {dense.reason}'
        return None

    def _run(
        self,
        plan: SubnetPlan,
        inputs: tuple[Any, ...],
        training: bool = False,
        gradients: bool = False,
    ) -> list[Tensor] | Apart:
        """The tensors that a subnet gives, or what it raises."""
        live = self._live
        if training:
            live = [m for m in self._model.modules() if not _changes_in_training(m)]
        self._subnet.plan = plan
        try:
            with eval_mode(self._model, live), torch.set_grad_enabled(gradients):
                outputs = tensors_of(self._model(*clones(inputs)))
                if training and gradients:
                    _backward(self._model, outputs)
        except Exception as error:  # whatever the model's code raises about sizes it did not expect
            text = f'{FAILS}: {type(error).__name__}: {error}'
            return Apart(text, raises=True)
        finally:
            self._subnet.plan = None
        return [output.detach() for output in outputs]


def _ends_apart(
    one: list[Tensor] | Apart, batch: list[Tensor] | Apart, tolerance: float
) -> Apart | None:
    """Outputs for inputs, and those for a batch that begins and ends with these (`surrounded`).

    Images are counted by the first dimension, or by a later one (behind that of layers).
    """
    if isinstance(one, Apart):
        return one
    if isinstance(batch, Apart):
        return batch
    if len(one) != len(batch):
        return compared(batch, one, tolerance)
    first, last = list(batch), list(batch)
    for place, (x, y) in enumerate(zip(one, batch, strict=True)):
        sizes = zip(x.shape, y.shape, strict=False)
        dim, own = next(((d, a) for d, (a, b) in enumerate(sizes) if b == 2 * a + 1), (None, 0))
        if dim is not None:
            first[place], last[place] = y.narrow(dim, 0, own), y.narrow(dim, own + 1, own)
    return compared(first, one, tolerance) or compared(last, one, tolerance)


def _named(model: nn.Module, paths: Container[str]) -> list[nn.Module]:
    return [module for path, module in model.named_modules() if path in paths]


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _changes_in_training(module: nn.Module) -> bool:
    """Norms that estimate their statistics, and what drops at random."""
    return isinstance(module, BatchNorm) or 'Drop' in type(module).__name__


def _backward(model: nn.Module, outputs: Sequence[Tensor]) -> None:
    """Gradients of the sum of all outputs; none are left at the parameters."""
    sums = [o.sum() for o in outputs if o.is_floating_point() and o.requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    if sums and trained:
        torch.autograd.grad(sums, trained, allow_unused=True)
