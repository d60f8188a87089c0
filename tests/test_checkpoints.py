"""Weights that do not fit raise, whichever way they are loaded; files are read without code."""

import os
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_state_dict as mmengine_load_state_dict
from torch import nn

from mmstp.checkpoints import (
    differences,
    plain_loading,
    read_checkpoint,
    require_fit,
    weights_of,
)
from mmstp.errors import CheckpointError


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


def test_both_sides_are_described():
    model = network()
    require_fit(model, 'Hint.', lambda weights: f'one of {len(weights)} tensors')
    with pytest.raises(CheckpointError) as error:
        model.load_state_dict({'0.weight': torch.zeros(4, 3, 1, 1)}, strict=False)
    *_, described, hint = str(error.value).splitlines()
    assert described == 'This network is one of 9 tensors, the weights are one of 1 tensors.'
    assert hint == 'Hint.'


@pytest.mark.parametrize('start', ['backbone.', 'model.backbone.', ''])
def test_a_prefix_that_is_missing_is_named(start):
    model = network()
    require_fit(model)
    state = {start + key: value for key, value in model.state_dict().items()}
    state['head.weight'] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        model.load_state_dict(state, strict=False)
    hint = f'Their keys begin with {start!r}: load them with prefix={start!r}.'
    assert (hint in str(error.value)) == bool(start)


def test_optional_tensors_may_be_missing_or_there():
    model = network()
    require_fit(model, optional={'0.bias', 'norm.weight'})
    state = model.state_dict()
    del state['0.bias']
    model.load_state_dict({**state, 'norm.weight': torch.zeros(1)}, strict=False)
    with pytest.raises(CheckpointError, match=r'norm\.bias: \(1,\) in the checkpoint, not here'):
        model.load_state_dict({**state, 'norm.bias': torch.zeros(1)}, strict=False)


class Tables(nn.Module):
    """Fits a table to its own size and works another out, as transformers of OpenMMLab do."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4))
        self.register_buffer('index', torch.arange(4))
        self._register_load_state_dict_pre_hook(self._prepare)

    def _prepare(self, state_dict, prefix, *_):
        state_dict[prefix + 'table'] = state_dict[prefix + 'table'].repeat(2)
        del state_dict[prefix + 'index']


def test_what_the_network_s_own_hooks_do_is_no_misfit():
    whole = nn.ModuleDict({'part': Tables()})
    require_fit(whole['part'])
    state = {'part.table': torch.tensor([1.0, 2.0]), 'part.index': torch.arange(2)}
    whole.load_state_dict(state, strict=False)
    assert whole['part'].table.tolist() == [1, 2, 1, 2]
    with pytest.raises(CheckpointError, match=r'table: \(6,\) in the checkpoint, \(4,\) here'):
        whole.load_state_dict({**state, 'part.table': torch.zeros(3)}, strict=False)


# --- init_cfg -------------------------------------------------------------------------------------


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


# --- files ----------------------------------------------------------------------------------------


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}',)


class Attribute:
    """Asks for an attribute of an allowed class that leads further."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


PLAIN = {
    'state_dict': OrderedDict(a=torch.ones(2)),
    'meta': {'epoch': 1, 'classes': ('a', 'b'), 'none': None},
    'numpy': [np.arange(3), np.float64(0.5), np.zeros(2, np.uint8), np.int32(3)],
    'log': {'loss': HistoryBuffer([1.0, 2.0], [1, 1])},
}


def test_what_mmengine_writes_is_read(tmp_path):
    torch.save(PLAIN, tmp_path / 'a.pth')
    for path in (tmp_path / 'a.pth', str(tmp_path / 'a.pth')):
        found = read_checkpoint(path)
        assert found['meta'] == PLAIN['meta']
        assert found['log']['loss'].current() == 2.0
        assert found['log']['loss'].statistics('mean') == 1.5
        assert np.array_equal(found['numpy'][0], np.arange(3))
        assert torch.equal(weights_of(found, path)['a'], torch.ones(2))


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('hostile', [Code, lambda mark: Attribute()])
def test_nothing_else_is(hostile, old, tmp_path):
    path, mark = tmp_path / 'a.pth', tmp_path / 'mark'
    torch.save({**PLAIN, 'more': hostile(mark)}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError, match=r"'.*a\.pth' holds \S+, which is neither a tensor"):
        read_checkpoint(path)
    with plain_loading(), pytest.raises(CheckpointError, match=r'a\.pth'):
        CheckpointLoader.load_checkpoint(str(path))
    path.write_bytes(pickle.dumps(Code(mark)))
    with pytest.raises(CheckpointError, match=r'a\.pth'):
        read_checkpoint(path)
    assert not mark.exists()


def test_other_files_are_named(tmp_path):
    torch.save(PLAIN, tmp_path / 'whole.pth')
    whole = (tmp_path / 'whole.pth').read_bytes()
    torch.save([1], tmp_path / 'list.pth')
    contents = {
        'empty': (b'', 'it is empty'),
        'text': (b'some text', 'it is damaged, or no file that torch.save wrote'),
        'json': (b'{"state_dict": {}}', 'it is damaged, or no file'),
        'cut': (whole[: len(whole) // 2], 'it is cut off'),
    }
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"'.*{name}' cannot be read: {reason}"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="nowhere' is not a file"):
        read_checkpoint(tmp_path / 'nowhere')
    with pytest.raises(CheckpointError, match=' is a folder'):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r'list\.pth. holds a list; expected a dict'):
        read_checkpoint(tmp_path / 'list.pth')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (
            {'meta': {}, 'pool': 3},
            r"'a' holds no weights: expected 'state_d.*it has meta, pool",
        ),
        ({'state_dict': 5}, 'holds no weights'),
        ({'state_dict': {3: torch.ones(1)}}, 'holds no weights'),
        ({'state_dict': {'x': torch.tensor([1.0, float('nan')])}}, 'x holds 1 of 2 numbers that'),
    ],
)
def test_contents_without_good_weights(content, message):
    with pytest.raises(CheckpointError, match=message):
        weights_of(content, 'a')


def test_mmengine_s_own_loaders_come_back(tmp_path):
    before = [CheckpointLoader._get_checkpoint_loader(name) for name in ('a.pth', 'http://a')]
    with pytest.raises(KeyError), plain_loading():
        assert CheckpointLoader._get_checkpoint_loader('a.pth') is not before[0]
        raise KeyError
    after = [CheckpointLoader._get_checkpoint_loader(name) for name in ('a.pth', 'http://a')]
    assert before == after


def test_more_weights_are_accepted_where_that_is_said():
    model = network()
    require_fit(model, extra=True)
    model.load_state_dict({**model.state_dict(), 'more': torch.zeros(1)}, strict=False)
    with pytest.raises(CheckpointError, match=r'2\.bias: missing'):
        model.load_state_dict(changed(drop='2.bias'), strict=False)
