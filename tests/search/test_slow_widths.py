"""Widths that save no time on a device, and the space without them."""

import itertools

import numpy as np
import pytest

from mmstp import SpaceError
from mmstp.search.slow_widths import slow_widths
from tests.search.test_latency import milliseconds, table_of


@pytest.fixture
def supernet(supernet_of):
    """With a latency by which every channel costs something; left as it was."""
    found = supernet_of('wrn16_2')
    space, cost = found.space, found.cost
    found.cost.use_latency(table_of(found))
    yield found
    found.space, found.cost, found.slow_widths = space, cost, {}
    cost.latency_fit = None


def channels(space):
    """What the architectures of a space keep: its depths and units, as a set."""
    rows = space.all_rows()
    depths = np.array([space.decode(row).depths for row in rows])
    return set(map(tuple, np.concatenate([depths, space.group_units(rows)], axis=1).tolist()))


def test_widths_that_keep_as_many_channels_are_slow_and_nothing_else_is_lost(supernet):
    space = supernet.space
    slow = slow_widths(space, supernet.cost)
    assert slow[space.stages[0].name] == (0.3, 0.9)  # of 32 channels 16 and 32, as 0.5 and 1.0
    smaller = space.without(slow)
    kept = channels(space)
    assert channels(smaller) == kept
    assert smaller.size == len(kept) < space.size


def test_a_space_with_fewer_choices_costs_the_same(supernet):
    smaller = supernet.space.without({supernet.space.stages[0].name: (0.3, 0.5)})
    cost = supernet.cost.within(smaller)
    some = [smaller.decode(row) for row in smaller.all_rows()[::97]]
    for metric in supernet.cost.metrics:
        np.testing.assert_allclose(
            cost.count(some, metric), supernet.cost.count(some, metric), rtol=1e-12
        )


def test_no_time_saved_is_less_than_a_thousandth(supernet):
    """The device of the table again, one stage after the other."""
    space, slow = supernet.space, slow_widths(supernet.space, supernet.cost)
    for index, stage in enumerate(space.stages):
        kept = [width for width in stage.widths if width not in slow.get(stage.name, ())]
        rows = np.repeat(space.encode(space.largest)[None], len(stage.widths), axis=0)
        rows[:, len(space.stages) + index] = range(len(stage.widths))
        time = dict(zip(stage.widths, milliseconds(supernet, rows), strict=True))
        for width, larger in itertools.pairwise(kept):
            assert time[width] <= time[larger] * 0.999
        for width in slow.get(stage.name, ()):
            assert time[width] > 0.999 * min(time[w] for w in kept if w > width)


def test_a_file_is_needed(supernet, monkeypatch):
    monkeypatch.setattr(supernet.space, 'prune_slow', True)
    with pytest.raises(SpaceError, match=r'space\.prune_slow=True: .* without a table'):
        supernet.use_latency(None)


def test_slow_widths_leave_the_space_when_the_table_is_read(supernet, tmp_path, monkeypatch):
    table_of(supernet).write(tmp_path / 'latency.json')
    supernet.use_latency(tmp_path / 'latency.json')
    whole, slow = supernet.space, supernet.slow_widths
    assert slow[whole.stages[0].name] == (0.3, 0.9)
    monkeypatch.setattr(whole, 'prune_slow', True)
    supernet.use_latency(tmp_path / 'latency.json')
    assert supernet.slow_widths == slow
    for before, after in zip(whole.stages, supernet.space.stages, strict=True):
        assert set(before.widths) - set(after.widths) == set(slow.get(before.name, ()))
    rows = supernet.space.all_rows()
    np.testing.assert_allclose(supernet.cost.latency(rows), milliseconds(supernet, rows), rtol=1e-6)
