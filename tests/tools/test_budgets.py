"""Several budgets in one run, with the tools."""

import json

import pytest
import torch

from mmstp.errors import LaunchError
from tests import tiny
from tests.runs import same, scalars

LABELS = ('30', 'macs-60')


@pytest.fixture(scope='module', params=[False, {}], ids=['main network', 'survivors'])
def survivor(request):
    """Whether the last ones are trained alone, for the last 2 of 6 iterations."""
    return request.param


@pytest.fixture(scope='module')
def config(survivor, tmp_path_factory):
    """The config file of a run for two, in epochs of 3 iterations."""
    path = tmp_path_factory.mktemp('budgets') / 'budgets.py'
    cfg = tiny.config(
        model__target=[{'macs': 0.6}, 0.3],
        model__survivor=survivor,
        train_dataloader__dataset__indices=48,
    )
    for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[field].update(num_workers=0, persistent_workers=False)
    cfg.dump(path)
    return path


@pytest.fixture(scope='module')
def run(call, config, tmp_path_factory):
    """Its work dir."""
    work_dir = tmp_path_factory.mktemp('run')
    call('train.py', config, '--work-dir', work_dir)
    return work_dir


def test_each_pool_ends_with_one_of_its_budget(run, survivor):
    saved = torch.load(run / 'epoch_2.pth', weights_only=False)['mmstp']
    assert saved['alone'] == (survivor is not False)
    assert tuple(saved['budgets']) == LABELS
    for label, state in saved['budgets'].items():
        (left,) = state['pool']['architectures']
        written = json.loads((run / f'best_architecture-{label}.json').read_text())
        assert written['architecture'] == left == state['best']
        share = int(label.removeprefix('macs-')) / 100
        assert written['macs_ratio'] == pytest.approx(share, rel=0.1)
        # as of a single budget: floor(2 * (5 - 1) / 4) after iteration 2, the rest after 4
        sizes = [line[name] for line in scalars(run) if (name := f'pool_size-{label}') in line]
        assert sizes == [5, 3, 3, 1, 1, 1]


def test_each_is_evaluated_and_the_mean_chooses_checkpoints(run):
    line = next(line for line in scalars(run) if 'accuracy/top1' in line)
    own = [line[f'subnet-{label}/accuracy/top1'] for label in LABELS]
    assert line['subnet/accuracy/top1'] == pytest.approx(sum(own) / 2)
    assert list(run.glob('best_subnet_accuracy_top1_epoch_*.pth'))


def test_resumed_equals_uninterrupted(call, config, run, tmp_path):
    """Behind three iterations it is not the first budget's turn."""
    call('train.py', config, '--work-dir', tmp_path, '--resume', run / 'epoch_1.pth')
    first, found, expected = (
        torch.load(path, weights_only=False)
        for path in (run / 'epoch_1.pth', tmp_path / 'epoch_2.pth', run / 'epoch_2.pth')
    )
    assert first['mmstp']['turn'] == 'macs-60'
    assert found['mmstp'] == expected['mmstp']
    assert same(found['state_dict'], expected['state_dict'])


def test_a_checkpoint_is_tested_for_each(call, config, run, tmp_path):
    call('test.py', config, run / 'epoch_2.pth', '--work-dir', tmp_path / 'test',
         '--out', tmp_path / 'metrics.json', '--out-item', 'metrics')  # fmt: skip
    line = [line for line in scalars(run) if 'accuracy/top1' in line][-1]
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    for name in ('accuracy/top1', 'subnet/accuracy/top1',
                 *(f'subnet-{label}/accuracy/top1' for label in LABELS)):  # fmt: skip
        assert metrics[name] == pytest.approx(line[name])


def test_a_number_that_names_two_budgets(call, tmp_path):
    """A half of the multiply-adds and a half of the parameters."""
    path = tmp_path / 'halves.py'
    tiny.config(model__target=[0.5, {'params': 0.5}], model__tolerance=0.01).dump(path)
    with pytest.raises(LaunchError, match=r'--budget 0\.5 is each of 50, params-50: expected one'):
        call('export.py', path, '--architecture', 'uniform', '--budget', 0.5, '--out',
             tmp_path / 'out')  # fmt: skip


def test_the_budget_that_is_cut_out_is_named(call, config, run, survivor, tmp_path):
    export = ('export.py', config, run / 'epoch_2.pth', '--out', tmp_path / 'out')
    budgets = r"expected one of the run's budgets, 30, macs-60 \(in percent\)"
    with pytest.raises(LaunchError, match=f'--budget is missing: {budgets}'):
        call(*export)
    with pytest.raises(LaunchError, match=rf'^--budget 0\.4: {budgets}'):
        call(*export, '--budget', 0.4)
    assert not (tmp_path / 'out').exists()
    with pytest.raises(LaunchError, match=r'--architecture .* is one already: leave --budget 30'):
        call(*export, '--budget', 30, '--architecture', '((1, 1, 1, 1), (1.0, 1.0, 1.0, 1.0))')
    call(*export, '--budget', 0.6, *(['--num-images', 32] if survivor is False else []))
    out = tmp_path / 'out'
    best = json.loads((run / 'best_architecture-macs-60.json').read_text())
    exported = json.loads((out / 'architecture.json').read_text())
    assert exported['architecture'] == best['architecture']
    given = f'{0.6 * best["macs_dense"]:,.0f} macs (60.00% of the dense network)'
    assert exported['budget'] == f'{given} within 10.00%'
    call('test.py', out / 'compact.py', out / 'compact.pth', '--work-dir', tmp_path / 'test',
         '--out', tmp_path / 'metrics.json', '--out-item', 'metrics')  # fmt: skip
    line = [line for line in scalars(run) if 'accuracy/top1' in line][-1]
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['accuracy/top1'] == pytest.approx(line['subnet-macs-60/accuracy/top1'])


def test_another_budget_is_found_in_the_main_network(call, config, run, survivor, tmp_path):
    search = ('search.py', config, run / 'epoch_2.pth', '--target', 0.45)
    if survivor is not False:
        message = r'of the survivor phase: \(\(.*\)\) and \(\(.*\)\) are trained alone there'
        with pytest.raises(LaunchError, match=message):
            call(*search)
        return
    call(*search, '--screened', 6, '--candidates', 2, '--images', 16, '--num-images', 32,
         '--out', tmp_path)  # fmt: skip
    written = json.loads((tmp_path / 'architecture.json').read_text())
    assert written['macs_ratio'] == pytest.approx(0.45, rel=0.1)
    others = [json.loads((run / f'best_architecture-{label}.json').read_text())['architecture']
              for label in LABELS]  # fmt: skip
    assert written['architecture'] not in others


def test_the_pool_of_one_is_drawn(call, run, tmp_path):
    picture = tmp_path / 'pool.png'
    with pytest.raises(ValueError, match='--budget is missing: expected one of 30, macs-60'):
        call('analysis_tools/plot_pool.py', run, '--out', picture)
    with pytest.raises(ValueError, match=r'--budget 0\.4: expected one of 30, macs-60'):
        call('analysis_tools/plot_pool.py', run, '--out', picture, '--budget', 0.4)
    call('analysis_tools/plot_pool.py', run, '--out', picture, '--budget', 'macs-60')
    assert picture.exists()
    one, same_one = tmp_path / '30.png', tmp_path / '0.3.png'
    call('analysis_tools/plot_pool.py', run, '--out', one, '--budget', 30)
    call('analysis_tools/plot_pool.py', run, '--out', same_one, '--budget', 0.3)
    assert one.read_bytes() == same_one.read_bytes() != picture.read_bytes()


def test_the_space_is_shown_for_each(call, config, capsys):
    with pytest.raises(SystemExit, match='1'):
        call('search_space.py', config, '--cfg-options', 'model.target=[0.4,0.41]')
    text = capsys.readouterr().out
    for label in ('40', '41'):
        assert f'target   {label}: ' in text
    assert 'the budgets 40 and 41 share members' in text
