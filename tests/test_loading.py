"""Weights that do not fit raise, whichever way they are loaded."""

import re

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict as mmengine_load_state_dict
from torch import nn

from mmstp.loading import CheckpointError, differences, require_fit


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))


def changed(key=None, value=None, drop=None):
    state = network().state_dict()
    if key:
        state[key] = value
    if drop:
        del state[drop]
    return state


LOADERS = [
    lambda model, state: model.load_state_dict(state),
    lambda model, state: model.load_state_dict(state, strict=False),
    mmengine_load_state_dict,
]
CASES = [
    (
        changed('0.weight', torch.zeros(2, 3, 1, 1)),
        '0.weight: (2, 3, 1, 1) in the checkpoint, (4, 3, 1, 1) here',
    ),
    (changed(drop='2.bias'), '2.bias: missing in the checkpoint, (2,) here'),
    (changed('more.weight', torch.zeros(5)), 'more.weight: (5,) in the checkpoint, not here'),
    (changed('epoch', 3), 'epoch: () in the checkpoint, not here'),
]


@pytest.mark.parametrize('load', LOADERS)
@pytest.mark.parametrize(('state', 'line'), CASES)
@pytest.mark.parametrize('inside', [False, True])
def test_what_does_not_fit_is_named(load, state, line, inside):
    """Also where the network is a part of the one that is loaded."""
    model = network()
    require_fit(model, 'Take another one.')
    whole = nn.ModuleDict({'part': model, 'rest': nn.Linear(2, 2)}) if inside else model
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    if inside:
        state = {f'part.{key}': value for key, value in state.items()}
        state |= {f'rest.{key}': value for key, value in whole['rest'].state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load(whole, state)
    where = ' (part)' if inside else ''
    expected = f'the weights do not fit this Sequential{where}:\n  {line}\nTake another one.'
    assert str(error.value) == expected
    own = model.state_dict(prefix='part.' if inside else '')
    assert all(torch.equal(before[key], value) for key, value in own.items())


@pytest.mark.parametrize('load', LOADERS)
def test_what_fits_is_loaded(load):
    model, state = network(), changed('2.bias', torch.tensor([3.0, 4.0]))
    require_fit(model)
    load(model, state)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    del state['1.num_batches_tracked']  # as old checkpoints
    model.load_state_dict(state, strict=False)


def test_long_lists_are_cut():
    model = network()
    require_fit(model)
    with pytest.raises(CheckpointError) as error:
        model.load_state_dict({})
    lines = str(error.value).splitlines()
    assert len(lines) == 1 + 5 + 1
    assert lines[-1] == '  … and 3 more'  # 9 tensors, of which the counter may be missing


def test_differences_come_in_the_order_of_the_module():
    found = differences(network(), changed('0.bias', torch.zeros(1), drop='2.weight'))
    assert [re.match(r'[\w.]+', line)[0] for line in found] == ['0.bias', '2.weight']
    assert differences(network(), changed()) == []
