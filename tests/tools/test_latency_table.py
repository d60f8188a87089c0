"""Measuring a space, and training to a latency."""

import json
import re

import numpy as np
import pytest
import torch

from mmstp import CheckpointError, LatencyError, LaunchError
from mmstp.search.latency_table import LatencyTable
from mmstp.stp.search_state import pools_state, read_search
from tests import tiny
from tests.latency import milliseconds, table_of
from tests.runs import same, scalars

WIDE = '((2, 2, 2, 1), (1.0, 1.0, 1.0, 1.0))'
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


def test_a_file_of_another_batch_is_left_alone(call, tiny_config, measured):
    before = measured.read_text()
    message = r'--out .*latency.json is kept: .* batch: 1 there, 2 here.*\. Give another --out'
    with pytest.raises(LatencyError, match=message):
        call('latency_table.py', tiny_config, '--out', measured, *MEASURE, '--batch', 2)
    assert measured.read_text() == before


def test_too_few_networks_are_not_measured(call, tiny_config, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call('latency_table.py', tiny_config, '--out', tmp_path / 'a.json', '--networks', 19)
    assert "'19': expected a whole number, at least 20" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(device='cuda'), "another setting: device: 'cuda' there, 'cpu' here"),
        (dict(processor='6502'), r"another setting: processor: '6502' there, '.+' here"),
        (dict(channels_last=True), 'another setting: channels_last: True there, False here'),
        (dict(versions=dict(torch='1.0')), r"versions, torch: '1\.0' there, '.+' here"),
    ],
)
def test_a_file_of_another_setting_is_left_alone(
    change, message, call, tiny_config, measured, tmp_path
):
    content = json.loads(measured.read_text())
    content['setting'] |= change
    path = tmp_path / 'latency.json'
    path.write_text(json.dumps(content))
    before = path.read_text()
    with pytest.raises(LatencyError, match=message):
        call('latency_table.py', tiny_config, '--out', path, *MEASURE)
    assert path.read_text() == before


def test_what_speaks_against_a_table_is_warned_of(call, tiny_config, measured, tmp_path, warnings):
    """Nothing is left to measure; the numbers are others."""
    table = LatencyTable.read(measured)
    table.dense_ms = [10.0, 10.0, 12.0]
    table.ratios = {text: 0.1 + 0.9 * (place % 2) for place, text in enumerate(table.ratios)}
    path = tmp_path / 'latency.json'
    table.write(path)
    call('latency_table.py', tiny_config, '--out', path, *MEASURE)
    assert f'{path}: the dense network took 10 to 12 ms, which is 20.0% of the median' in warnings()
    assert f'{path}: networks that are not in the fit have mean error' in warnings()


def test_a_run_by_a_doubtful_table_says_so(call, tiny_config, measured, tmp_path, warnings):
    table = LatencyTable.read(measured)
    table.ratios = {text: 0.1 + 0.9 * (place % 2) for place, text in enumerate(table.ratios)}
    path = tmp_path / 'latency.json'
    table.write(path)
    call('search_space.py', tiny_config, '--cfg-options', f'model.latency={path}')
    assert f"model.latency='{path}': networks that are not in the fit have mean error" in warnings()


def test_the_field_that_names_no_table_is_named(call, tiny_config):
    message = r"model\.latency: 'none\.json' cannot be read: No such file"
    with pytest.raises(LatencyError, match=message):
        call('search_space.py', tiny_config, '--cfg-options', 'model.latency=none.json')


def test_another_budget_in_latency_afterwards(call, tiny_config, tmp_path, capsys):
    """From a dense network, by two limits, on a device that is made up."""
    stp = tiny.stp()
    table_of(stp.supernet).write(tmp_path / 'latency.json')
    torch.save(stp.model.state_dict(), tmp_path / 'dense.pth')
    call('search.py', tiny_config, '--target', 'latency=0.5', 'params=0.4', '--screened', 6,
         '--candidates', 2, '--images', 16, '--num-images', 32, '--out', tmp_path / 'out',
         '--cfg-options', f'model.pretrained={tmp_path / "dense.pth"}',
         f'model.latency={tmp_path / "latency.json"}', 'train_dataloader.num_workers=0',
         'train_dataloader.persistent_workers=False')  # fmt: skip
    head, *rows = capsys.readouterr().out.splitlines()[-3:]
    assert head.split()[:4] == ['architecture', 'macs', 'latency', 'params']
    members = [row[: row.index('))') + 2] for row in rows]
    dense, cost = stp.supernet.space.largest, stp.supernet.cost
    times = milliseconds(stp.supernet, [*members, dense])
    params = cost.params([*members, dense])
    parts = [(own / own[-1])[:-1] / limit for own, limit in ((times, 0.5), (params, 0.4))]
    assert (abs(np.max(parts, axis=0) - 1) <= 0.1).all()
    written = json.loads((tmp_path / 'out/architecture.json').read_text())
    assert written['architecture'] == members[0]
    assert written['latency_ratio'] == pytest.approx(times[0] / times[-1])


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


@pytest.fixture(scope='module')
def to_latency(call, tiny_config, measured, tmp_path_factory):
    """The options of a run to a latency, and its work dir: epochs of 4 iterations."""
    options = ('--cfg-options', 'model.metric=latency', f'model.latency={measured}',
               'model.target=0.7', 'train_dataloader.num_workers=0',
               'train_dataloader.persistent_workers=False')  # fmt: skip
    work_dir = tmp_path_factory.mktemp('run')
    call('train.py', tiny_config, '--work-dir', work_dir, *options)
    return options, work_dir


def test_a_run_says_the_latency_of_its_best(to_latency):
    _, work_dir = to_latency
    written = json.loads((work_dir / 'best_architecture.json').read_text())
    assert written['latency_ratio'] == written['latency'] / written['latency_dense']
    assert written['latency_ratio'] == pytest.approx(0.7, rel=0.1)
    logged = [line['best/latency_ratio'] for line in scalars(work_dir)
              if 'best/latency_ratio' in line]  # fmt: skip
    assert logged[-1] == pytest.approx(written['latency_ratio'])


def test_a_resumed_run_to_a_latency_equals_the_uninterrupted(
    call, tiny_config, to_latency, tmp_path
):
    options, work_dir = to_latency
    call('train.py', tiny_config, '--work-dir', tmp_path, '--resume', work_dir / 'epoch_1.pth',
         *options)  # fmt: skip
    found, expected = (
        torch.load(path / 'epoch_2.pth', weights_only=False) for path in (tmp_path, work_dir)
    )
    assert found['mmstp'] == expected['mmstp']
    assert same(found['state_dict'], expected['state_dict'])


def test_a_run_to_a_latency_is_exported(call, tiny_config, to_latency, tmp_path):
    options, work_dir = to_latency
    call('export.py', tiny_config, work_dir / 'epoch_2.pth', '--out', tmp_path, '--num-images', 32,
         *options)  # fmt: skip
    written = json.loads((work_dir / 'best_architecture.json').read_text())
    exported = json.loads((tmp_path / 'architecture.json').read_text())
    names = ('architecture', 'latency', 'latency_dense', 'latency_ratio')
    assert [exported[name] for name in names] == [written[name] for name in names]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: t['setting'].update(batch=8), 'setting, batch: 1 there, 8 here'),
        (lambda t: t.update(date='2020-01-01'), r"date: '20.*' there, '2020-01-01' here"),
        (lambda t: t['ratios'].update({WIDE: 0.9}), 'networks: 20 there, 21 here'),
        (lambda t: t.update(dense_ms=[9.0]), r'dense, ms: [\d.]+ there, 9\.0 here'),
        (
            lambda t: t['ratios'].update({next(iter(t['ratios'])): 0.5}),
            r"digest of the measurements: '\w{16}' there",
        ),
    ],
)
def test_a_run_goes_on_by_its_own_table(
    change, message, call, tiny_config, measured, to_latency, tmp_path
):
    """Refused where it is resumed, and where its subnet is cut out; the path may be another."""
    options, work_dir = to_latency
    content = json.loads(measured.read_text())
    change(content)
    other = tmp_path / 'other.json'
    other.write_text(json.dumps(content))
    options = [*options, f'model.latency={other}']
    with pytest.raises(CheckpointError, match=f'another table of the latency.*{message}'):
        call('export.py', tiny_config, work_dir / 'epoch_2.pth', '--out', tmp_path / 'out',
             *options)  # fmt: skip
    if 'batch' in message:
        with pytest.raises(CheckpointError, match=f'another table of the latency.*{message}'):
            call('train.py', tiny_config, '--work-dir', tmp_path / 'run', '--resume',
                 work_dir / 'epoch_1.pth', *options)  # fmt: skip


def test_a_table_that_decided_nothing_is_not_asked_for(measured):
    """A run to multiply-adds may be resumed, and searched, with any."""
    without, beside = tiny.stp(), tiny.stp(model__latency=str(measured))
    state = pools_state(without, {})
    assert pools_state(beside, {}) == state
    assert read_search(beside, state) == read_search(without, state)
    pruned = tiny.stp(model__latency=str(measured), model__space__prune_slow=True)
    assert pools_state(pruned, {})['latency_table']['networks'] == 20


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
