"""Measuring a space, and training to a latency."""

import json
import re

import pytest

from mmstp import LatencyError, LaunchError
from mmstp.search.latency_table import LatencyTable
from tests import tiny

MEASURE = ('--backend', 'torch', '--networks', 20, '--rounds', 2)


@pytest.fixture(scope='module')
def measured(call, tiny_config, tmp_path_factory):
    """A table of 20 networks."""
    path = tmp_path_factory.mktemp('latency') / 'latency.json'
    call('latency_table.py', tiny_config, '--out', path, *MEASURE)
    return path


def test_a_table_is_of_the_space_of_its_config(measured):
    table = LatencyTable.read(measured)
    space = tiny.stp().supernet.space
    assert len(set(map(space.check, table.ratios))) == 20
    assert table.setting['backend'] == 'torch'
    assert len(table.dense_ms) == 3  # two groups of eight, and one of four


def test_an_interrupted_run_measures_what_is_missing(call, tiny_config, measured, tmp_path):
    table = LatencyTable.read(measured)
    begun = dict(list(table.ratios.items())[:16])
    path = tmp_path / 'latency.json'
    LatencyTable(table.setting, table.space, table.date, table.dense_ms[:2], begun).write(path)
    call('latency_table.py', tiny_config, '--out', path, *MEASURE)
    found = LatencyTable.read(path)
    assert found.ratios.keys() == table.ratios.keys()
    assert begun.items() <= found.ratios.items()
    assert found.dense_ms[:2] == table.dense_ms[:2]
    assert len(found.dense_ms) == 3


def test_a_file_of_another_setting_is_left_alone(call, tiny_config, measured):
    before = measured.read_text()
    with pytest.raises(LatencyError, match='another setting: batch is 1 there and 2 here'):
        call('latency_table.py', tiny_config, '--out', measured, *MEASURE, '--batch', 2)
    content = json.loads(before)
    content['setting']['versions']['torch'] = '1.0'
    measured.write_text(json.dumps(content))
    try:
        with pytest.raises(LatencyError, match=r'versions\.torch is .1\.0. there and .* here'):
            call('latency_table.py', tiny_config, '--out', measured, *MEASURE)
    finally:
        measured.write_text(before)


def test_a_budget_in_latency(call, tiny_config, measured, tmp_path, capsys):
    """In the report of the space, the pool, and what is exported."""
    options = ('model.metric=latency', f'model.latency={measured}', 'model.target=0.7')
    call('search_space.py', tiny_config, '--cfg-options', *options)
    text = capsys.readouterr().out
    assert 'ms (70.00% of the dense network)' in text
    assert 'latency  20 networks' in text
    stp = tiny.stp(model__metric='latency', model__latency=str(measured), model__target=0.7)
    cost, space = stp.supernet.cost, stp.supernet.space
    ratios = cost.latency(list(stp.pool.scores)) / cost.latency(space.largest)
    assert (abs(ratios / 0.7 - 1) <= 0.1).all()
    call('export.py', tiny_config, '--architecture', 'uniform', '--out', tmp_path,
         '--cfg-options', *options)  # fmt: skip
    written = json.loads((tmp_path / 'architecture.json').read_text())
    assert written['latency_ratio'] == pytest.approx(0.7, rel=0.1)
    assert written['latency_table'] == str(cost.latency_fit)


def test_widths_that_save_no_time(call, tiny_config, measured, capsys):
    """Named in the report; left out of the pool where that is asked for."""
    call('search_space.py', tiny_config, '--cfg-options', f'model.latency={measured}')
    found = re.search(r'no faster than the next larger: ([\d., ]+) \(', capsys.readouterr().out)
    # of 16 channels 0.3 keeps as many as 0.5, and 0.7 and 0.9 as many as all
    assert {'0.3', '0.7', '0.9'} <= set(found[1].split(', '))
    stp = tiny.stp(model__latency=str(measured), model__space__prune_slow=True)
    assert not {0.3, 0.7, 0.9} & {architecture.widths[0] for architecture in stp.pool.scores}


def test_a_config_without_a_search(call):
    with pytest.raises(LaunchError, match=r'not mmstp\.STP'):
        call('latency_table.py', tiny.ROOT / 'configs/retinanet/retinanet_r50-slim_fpn_digits.py')
