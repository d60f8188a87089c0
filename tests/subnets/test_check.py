"""The check of a supernet finds each kind of mistake, and leaves no trace in the model."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from mmstp import Architecture, ChannelGraph, Supernet
from mmstp.errors import VerificationError
from mmstp.subnets.apart import DIFFERS, TOLERANCE
from mmstp.subnets.check import Verifier
from mmstp.subnets.plan import DENSE, Selection, named_tensors
from tests.networks import TINY_INPUT, tiny

SMALL = Architecture((2, 1), (0.5, 0.3))


@pytest.fixture(scope='module')
def supernet():
    return Supernet(tiny(), TINY_INPUT)


@pytest.fixture(scope='module')
def verifier(supernet):
    return Verifier(supernet.model, supernet.graph, supernet.inputs)


def planned(supernet, architecture=SMALL):
    """What is right for an architecture: its plan and the units kept of every group."""
    units = supernet.space.group_units(supernet.space.encode(architecture)[None])[0]
    return supernet._plan(architecture), units


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_right_plans_pass(dtype, supernet, verifier, monkeypatch):
    """In float64 too, which decides where float32 does not."""
    if dtype == torch.float64:
        monkeypatch.setitem(TOLERANCE, torch.float32, -1)
    for architecture in (SMALL, supernet.space.smallest, supernet.space.largest):
        assert verifier.difference(*planned(supernet, architecture)) is None


class Float32(nn.Module):
    """A layer whose code has its precision written into it."""

    def forward(self, x):
        return torch.einsum('bchw,wv->bchv', x, torch.eye(x.shape[-1], dtype=torch.float32))


@pytest.fixture
def decided_in_float64(monkeypatch):
    """How a subnet differs, where float32 does not pass, of the network with a further layer."""

    def difference(layer):
        model = tiny()
        model.stem = nn.Sequential(model.stem, layer)
        supernet = Supernet(model, TINY_INPUT)
        monkeypatch.setitem(TOLERANCE, torch.float32, -1)
        verifier = Verifier(supernet.model, supernet.graph, supernet.inputs)
        return verifier.difference(*planned(supernet))

    return difference


def test_where_no_more_digits_can_be_had_float32_is_what_is_told(decided_in_float64):
    assert decided_in_float64(Float32()).startswith(DIFFERS)


class OwnPrecision(nn.Module):
    """A layer whose code asks for its precision, as attention does for its mask; a trace cannot."""

    def forward(self, x):
        return torch.einsum('bchw,wv->bchv', x, torch.eye(x.shape[-1]).bool().to(x.dtype))


def test_a_trace_follows_where_code_asks_for_its_precision(decided_in_float64):
    assert decided_in_float64(OwnPrecision()) is None


def in_use(plan):
    """Keys of narrowed tensors outside blocks that are left out."""
    blocks = tuple(path + '.' for path in plan.skipped)
    return [key for key in plan.tensors if not key.startswith(blocks)]


def test_wrong_positions_are_found(supernet, verifier):
    """As many as there should be, but the last instead of the first."""
    plan, units = planned(supernet)
    tensors = named_tensors(supernet.model)
    for key in in_use(plan):
        for i, selection in enumerate(plan.tensors[key]):
            size, count = tensors[key].shape[selection.dim], len(selection.positions)
            wrong = list(plan.tensors[key])
            wrong[i] = Selection(selection.dim, np.arange(size - count, size))
            tampered = dataclasses.replace(plan, tensors={**plan.tensors, key: tuple(wrong)})
            reason = verifier.difference(tampered, units)
            assert reason.startswith(DIFFERS), key


def test_forgotten_tensors_are_found(supernet, verifier):
    plan, units = planned(supernet)
    for key in plan.tensors:
        tensors = {k: v for k, v in plan.tensors.items() if k != key}
        reason = verifier.difference(dataclasses.replace(plan, tensors=tensors), units)
        assert bool(reason) == (key in in_use(plan)), key


def test_other_counts_are_found(supernet, verifier):
    plan, _ = planned(supernet)
    _, units = planned(supernet, Architecture((2, 1), (0.7, 0.3)))
    assert verifier.difference(plan, units).startswith(DIFFERS)


def test_wrongly_skipped_blocks_are_found(supernet, verifier):
    """The trace leaves out what the plan says, but this model does not."""
    plan, units = planned(supernet)
    assert 'stage1.2' in plan.skipped
    block = verifier._model.stage1[2]
    cls = type(block)
    try:
        block.__class__ = cls.mmstp_class  # static again, so never skipped
        reason = verifier.difference(plan, units)
    finally:
        block.__class__ = cls
    assert reason.startswith(DIFFERS)
    assert verifier.difference(plan, units) is None


def test_narrow_outputs_are_compared():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 1)
            self.last = nn.Conv2d(16, 24, 1)

        def forward(self, x):
            return {'features': self.last(self.stem(x))}

    supernet = Supernet(Features(), TINY_INPUT, fix_outputs=False)
    check = Verifier(supernet.model, supernet.graph, supernet.inputs)
    architecture = supernet.space.smallest
    plan, units = planned(supernet, architecture)
    assert check.difference(plan, units) is None
    reason = check.difference(DENSE, units)
    assert reason == 'its output has shape (1, 24, 8, 8) when narrowed, not (1, 8, 8, 8)'


def test_model_and_random_state_stay(supernet):
    model = tiny().train()
    state = copy.deepcopy(model.state_dict())
    before = torch.get_rng_state()
    graph = ChannelGraph.from_model(model, [TINY_INPUT])
    Verifier(model, graph, [TINY_INPUT]).check_dense()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert model.head.weight.dtype == torch.float32


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.last(nn.functional.dropout(self.stem(x), training=True))


class NotANumber(Noisy):
    def forward(self, x):
        return self.last(self.stem(x)) / 0 * 0


@pytest.mark.parametrize('cls', [Noisy, NotANumber])
def test_models_that_cannot_be_compared_are_refused(cls):
    model = cls()
    graph = ChannelGraph.from_model(model, [TINY_INPUT])
    message = f'the trace of {cls.__name__} does not compute'
    with pytest.raises(VerificationError, match=message):
        Verifier(model, graph, [TINY_INPUT]).check_dense()
    with pytest.raises(VerificationError, match='does not compute what the model does'):
        Supernet(model, TINY_INPUT, stem=True)


def test_signals_of_a_fresh_network_do_not_vanish(supernet):
    """A branch that starts at zero would hide every mistake in it."""
    model = tiny()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.norm2.' in name or '.conv1.' in name:
                parameter.zero_()
    fresh = Supernet(model, TINY_INPUT)
    check = Verifier(fresh.model, fresh.graph, fresh.inputs)
    plan, units = planned(fresh)
    selections = plan.tensors['stage1.1.conv1.weight']
    count = len(selections[0].positions)
    wrong = Selection(0, np.arange(1, count + 1)), *selections[1:]
    tensors = {**plan.tensors, 'stage1.1.conv1.weight': wrong}
    assert check.difference(dataclasses.replace(plan, tensors=tensors), units)
