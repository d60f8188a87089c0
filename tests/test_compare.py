"""The harness of benchmarks/compare: allowances, pausing, rows, differences."""

import argparse
import itertools
import json
import os
import re
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from scipy import stats

from tests.dataset_files import (
    accept_generated_cifar100,
    make_cifar100,
    make_imagenet,
    make_tiny_imagenet,
)

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / 'compare')]

import given  # noqa: E402
import libraries  # noqa: E402
import methods  # noqa: E402
import paper  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
import setting  # noqa: E402
import tables  # noqa: E402
import training  # noqa: E402
from setting import Setting  # noqa: E402

SHORT = Setting('scratch', 'uniform', 'digits', 'r18_slim', 0.35, 1 / 6, 'epochs', 0)
# mmengine: the second run of a folder finds the first one's message hub
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


def trial(tmp_path: Path, of: Setting = SHORT, **options) -> training.Trial:
    return training.Trial(of, tmp_path, **options)


def result(of: training.Trial) -> methods.Found:
    name = of.setting.method, of.setting.variant
    return methods.METHODS[name](of, of.setting.variant)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['scratch', 'stp'])
def test_run_that_pauses_after_every_epoch_ends_like_one_that_does_not(name, tmp_path):
    of = replace(SHORT, method=name, preset='short' if name == 'stp' else 'uniform')
    whole = trial(tmp_path / 'whole', of)
    expected = result(whole)
    with pytest.raises(training.PausedError):
        result(trial(tmp_path / 'paused', of, stop=lambda: True))
    resumed = trial(tmp_path / 'paused', of)
    found = result(resumed)
    assert (resumed.steps, resumed.epochs) == (whole.steps, whole.epochs)
    assert resumed.epochs == 2
    assert found.architecture == expected.architecture
    for key, value in expected.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[key], value), key


def test_network_that_costs_half_is_trained_twice_as_long(tmp_path, monkeypatch):
    monkeypatch.setattr(training.Trial, 'cost', lambda self, build: 0.5)
    by_time = trial(tmp_path, replace(SHORT, compare='time'))
    result(by_time)
    assert by_time.epochs == 4


@pytest.mark.slow
def test_cost_of_the_dense_network_is_one_step_of_itself(tmp_path, monkeypatch):
    interleave = training.interleave
    monkeypatch.setattr(training, 'interleave', lambda functions, *_: interleave(functions, 7))
    own = trial(tmp_path)
    assert own.cost(own.dense) == pytest.approx(1, rel=0.5)  # a time: it only has to be about one


def test_phases_share_the_allowance_and_the_dense_one_is_trained_once(tmp_path):
    of = replace(SHORT, method='magnitude', preset='l2-finetuned')
    first = trial(tmp_path, of)
    result(first)
    assert first.epochs == 2  # one and one
    common = sorted(first.shared.rglob('epoch_*.pth'))
    written = [path.stat().st_mtime_ns for path in common]
    result(trial(tmp_path, replace(of, method='distilled', preset='uniform')))
    assert [path.stat().st_mtime_ns for path in common] == written


@pytest.mark.parametrize('rule', ['random', 'uniform'])
def test_architecture_of_a_rule_meets_the_budget(rule, tmp_path):
    own = trial(tmp_path)
    supernet = own.supernet(own.dense())
    architecture = methods.chosen(own, supernet, rule)
    ratio = supernet.describe(architecture)['macs_ratio']
    assert ratio == pytest.approx(0.35, rel=training.TOLERANCE)


def test_survivor_is_that_of_the_row_with_the_same_coordinates(tmp_path):
    of = replace(SHORT, preset='survivor')
    row = {**vars(replace(of, method='stp', preset='short')), 'architecture': '((1,), (0.5,))'}
    others = [{**row, 'seed': 1, 'architecture': '((2,), (1.0,))'}]
    with pytest.raises(training.WaitingError, match='stp/short/0'):
        methods.chosen(trial(tmp_path, of, rows=others), None, 'survivor')
    found = methods.chosen(trial(tmp_path, of, rows=[*others, row]), None, 'survivor')
    assert str(found) == '((1,), (0.5,))'


def test_penalty_shrinks_what_lies_outside_and_nothing_else(tmp_path):
    own = trial(tmp_path)
    network = own.dense()
    supernet = own.supernet(network)
    architecture = methods.chosen(own, supernet, 'uniform')
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    kept = supernet.kept(architecture)

    class Runner:
        model, iter, max_iters = network, 9, 10

        class optim_wrapper:
            @staticmethod
            def get_lr():
                return {'lr': [0.1]}

    methods.Sparsify(kept, norm=2, strength=0.5).after_train_iter(Runner)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter[kept[name]], before[name][kept[name]])
        torch.testing.assert_close(parameter[~kept[name]], 0.95 * before[name][~kept[name]])


@pytest.mark.parametrize(
    ('name', 'folder', 'make', 'network'),
    [
        ('cifar100', 'cifar100', make_cifar100, 'r50_slim'),
        ('tiny_imagenet', 'tiny-imagenet-200', make_tiny_imagenet, 'r50_slim'),
        ('imagenet', 'imagenet', make_imagenet, 'resnet50'),
    ],
)
def test_data_that_are_not_here_are_taken_by_name(
    name, folder, make, network, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # paths are relative
    arguments = ['run.py', '--data', name, '--networks', network, '--rows', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', arguments)
    with pytest.raises(SystemExit, match=f'^--data: {name}: train_dataloader.dataset.data_root = '):
        run.main()
    make(tmp_path / 'data' / folder)
    accept_generated_cifar100(monkeypatch)
    of = trial(tmp_path, replace(SHORT, data=name, network=network))
    if of.has_validation:  # ten images are there, of fifty thousand
        parts = of.data.train_dataloader.dataset.indices, of.data.validation_dataset.indices
        assert sorted([*parts[0], *parts[1]]) == list(range(50000))
        of.data.train_dataloader.dataset.indices = range(8)
        of.data.validation_dataset.indices = range(8, 10)
        assert len(of.dataset('validation').dataset) == 2
    of.data.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    of.data.test_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    dense = of.dense().train()
    for split in (of.training_images(), of.dataset('test')):
        batch = dense.data_preprocessor(next(iter(split)), training=True)
        assert batch['inputs'].shape == (4, *of.data.input_shape)
        assert dense(**batch, mode='loss')['loss'].isfinite()


def test_validation_images_are_looked_for_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, 'check_datasets', lambda config: None)
    monkeypatch.setattr(sys, 'argv', ['run.py', '--data', 'fashion_6k_14', '--rows', 'rows'])
    with pytest.raises(SystemExit, match=r'^--data: fashion_6k_14: validation_dataset.data_root'):
        run.main()


def test_run_whose_process_dies_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    row = dict(top1=90.0, macs_ratio=0.35, device=training.device_name('cpu'))
    monkeypatch.setattr(
        run,
        'row_of',
        lambda of, *_: os._exit(9) if of.seed else row,  # as when memory ends
    )
    arguments = ['--work-dir', str(tmp_path), '--rows', str(tmp_path / 'rows'), '--processes', '2']
    settings = [replace(SHORT, seed=seed) for seed in (1, 0)]
    assert run.run_all(settings, run.parse(arguments))
    assert [setting.setting_of(r) for r in setting.read_rows(tmp_path / 'rows')] == settings[1:]
    assert 'exit code 9' in capsys.readouterr().out


@pytest.mark.parametrize('processes', ['1', '2'])
def test_runs_that_wait_for_each_other_end(processes, tmp_path, monkeypatch, capsys):
    def waits(of, *_):
        raise training.WaitingError('needs a row of stp:short')

    monkeypatch.setattr(run, 'row_of', waits)
    arguments = ['--work-dir', str(tmp_path), '--rows', str(tmp_path), '--processes', processes]
    assert run.run_all([replace(SHORT, seed=seed) for seed in (1, 0)], run.parse(arguments))
    assert capsys.readouterr().out.count('FAILED: needs a row of stp:short') == 2


def test_row_that_another_call_has_written_is_not_written_twice(tmp_path, monkeypatch):
    row = dict(top1=90.0, macs_ratio=0.35, device=training.device_name('cpu'))
    monkeypatch.setattr(run, 'row_of', lambda *_: row)
    setting.append_row(SHORT, row, tmp_path)
    assert not run.run_all([SHORT], run.parse(['--rows', str(tmp_path)]))
    assert len(setting.read_rows(tmp_path)) == 1


def test_weights_that_are_gone_are_no_result(tmp_path):
    dense = replace(SHORT, method='dense', preset='plain')
    result(trial(tmp_path, dense))
    for path in [*tmp_path.rglob('*.pth'), *tmp_path.rglob('last_checkpoint')]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match='its last checkpoint is gone: delete'):
        result(trial(tmp_path, dense))


@pytest.mark.parametrize(
    ('flag', 'value', 'expected'),
    [
        ('--budgets', '35', 'a number above 0, at most 1'),
        ('--lengths', '0', 'a finite number above 0'),
        ('--lengths', 'nan', 'a finite number above 0'),
        ('--processes', '0', 'a whole number of at least 1'),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(flag, value, expected, capsys):
    with pytest.raises(SystemExit):
        run.parse([flag, value])
    assert f'argument {flag}: {value}: expected {expected}' in capsys.readouterr().err


def test_row_of_another_device_is_not_taken_for_done(tmp_path, monkeypatch, capsys):
    setting.append_row(SHORT, {'device': 'a GPU'}, tmp_path)
    setting.append_row(replace(SHORT, seed=1), {'device': training.device_name('cpu')}, tmp_path)
    monkeypatch.setattr(run, 'settings_of', lambda _: [SHORT, replace(SHORT, seed=1)])
    monkeypatch.setattr(sys, 'argv', ['run.py', '--rows', str(tmp_path), '--list'])
    run.main()
    assert capsys.readouterr().out.splitlines() == ['2 runs, 1 of them done', SHORT.key]
    own, other = (trial(tmp_path, device=device) for device in ('cpu', 'cuda'))
    assert own.folder != other.folder and own.shared != other.shared


def test_teacher_moves_with_its_student_and_is_in_no_checkpoint(tmp_path):
    network, teacher = (trial(tmp_path).dense() for _ in range(2))
    taught = training.Taught(network, teacher).double()
    assert {weight.dtype for weight in teacher.parameters()} == {torch.float64}
    assert len(taught.state_dict()) == len(network.state_dict())


def test_options_of_a_preset_are_read_from_its_name():
    of = replace(SHORT, method='magnitude', preset='l2-finetuned@tuning=0.1')
    assert (of.variant, of.options) == ('l2-finetuned', {'tuning': 0.1})
    assert of.key != SHORT.key


def test_network_with_values_of_its_own_has_none_that_were_found_for_others(tmp_path):
    of = trial(tmp_path, replace(SHORT, preset='uniform@tuning=0.2'))
    assert [methods.option(of, name) for name in ('lr', 'tuning')] == [2.0, 0.2]
    of.network.tuned = {'dense:plain': {'lr': 3.0}}
    assert [methods.option(of, name) for name in ('lr', 'tuning')] == [1.0, 0.2]
    assert methods.option(of, 'lr', ('dense', 'plain')) == 3.0


def test_values_of_networks_are_of_methods_that_there_are():
    for path in (BENCHMARKS / 'compare/networks').glob('*.py'):
        for name in Config.fromfile(path).get('tuned', {}):
            assert tuple(name.split(':')) in methods.METHODS, f'{path}: {name}'


def test_option_that_the_method_does_not_read_is_refused(tmp_path):
    unread = replace(SHORT, preset='uniform@lr=1,l2=5')
    args = run.parse(['--work-dir', str(tmp_path), '--rows', str(tmp_path / 'rows')])
    with pytest.raises(ValueError, match=r'^scratch:uniform has no option l2$'):
        run.row_of(unread, args, threading.Event())


@pytest.mark.parametrize(('preset', 'taught'), [('magnitude', True), ('magnitude-untaught', False)])
def test_cut_of_a_given_network_is_taught_or_not(preset, taught, tmp_path, monkeypatch):
    teachers = []
    monkeypatch.setattr(given, 'given_network', lambda trial: trial.dense())
    monkeypatch.setattr(given, 'taught', lambda trial, build, teacher, *_: teachers.append(teacher))
    result(trial(tmp_path, replace(SHORT, method='given', preset=preset)))
    assert bool(teachers) == taught


def test_cut_that_cannot_meet_the_budget_is_refused(tmp_path):
    of = trial(tmp_path)
    tp = pytest.importorskip('torch_pruning')
    network = of.dense()
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    make = partial(tp.pruner.BasePruner, importance=importance)
    pruner = libraries.pruner_of(of, make, network)
    with pytest.raises(ValueError, match=r'^budget 0.0001: Torch-Pruning removed all that it may'):
        libraries.cut(network, pruner, 0.0001, libraries.example_of(of))


def test_page_of_the_paper_is_left_alone_without_a_row(tmp_path, monkeypatch, capsys):
    setting.append_row(SHORT, dict(top1=1, device='x86_64'), tmp_path / 'rows')
    (tmp_path / 'paper.md').write_text('as it was')
    monkeypatch.setattr(paper, 'DOCS', tmp_path)
    for kind, number in (*(('table', number) for number in paper.TABLES), ('figure', '2')):
        monkeypatch.setattr(sys, 'argv', ['paper.py', kind, number, '--rows', f'{tmp_path}/rows'])
        paper.main()
        assert capsys.readouterr().out.startswith(f'{kind} {number}: no row is of it')
    assert (tmp_path / 'paper.md').read_text() == 'as it was'


def test_rows_are_read_back_and_a_broken_line_is_named(tmp_path):
    setting.append_row(SHORT, {'top1': 90.0}, tmp_path)
    [row] = setting.read_rows(tmp_path)
    assert setting.setting_of(row) == SHORT and row['top1'] == 90.0
    path = tmp_path / 'digits.jsonl'
    path.write_text(path.read_text().rstrip('\n'))  # as an editor may leave it
    setting.append_row(replace(SHORT, seed=1), {'top1': 90.0}, tmp_path)
    assert len(setting.read_rows(tmp_path)) == 2
    for line, told in (('{"a": 1}', 'lacks budget'), (json.dumps(row)[:40], '')):
        path.write_text(f'{json.dumps(row)}\n{line}')
        with pytest.raises(ValueError, match=rf'digits\.jsonl:2 is no row: .*{told}'):
            setting.read_rows(tmp_path)
    with pytest.raises(ValueError, match='is no row'):
        setting.read_rows(tmp_path)


@pytest.mark.parametrize(
    ('own', 'expected'),
    [
        ({0: 91.0, 1: 92.0, 2: 93.1}, '**+1.03 ± 0.03**'),
        ({0: 91.0, 1: 90.0, 2: 92.0}, 'none (+0.00 ± 0.58)'),
        ({2: 93.0}, '+1.00 (seeds: 1, too few to say)'),
        ({0: 91.0, 1: 92.0}, '+1.00 (seeds: 2, too few to say)'),
        ({7: 93.0}, ''),
    ],
)
def test_differences_are_paired_and_called_none_below_two_standard_errors(own, expected):
    assert report.difference(own, {0: 90.0, 1: 91.0, 2: 92.0}) == expected


def test_in_short_are_pairs_at_equal_time_in_one_setting():
    pair = ('stp', 'recommended'), ('scratch', 'uniform')
    rows = [
        dict(
            vars(replace(SHORT, method=name[0], preset=name[1], seed=seed, compare=compare)),
            top1=70.0 + seed + gap * (name == pair[0]) * (compare == 'time'),
            validation_top1=80.0,
            device='a CPU',
        )
        for name in pair
        for compare in ('time', 'epochs')
        for seed, gap in enumerate((1, 2, 3))
    ]
    *_, line = report.in_short(rows, [pair, pair[::-1], (pair[0], ('dense', 'plain'))]).split('\n')
    assert line == (
        '| r18_slim, digits | 35% | 0.166667 T | scratch: uniform | stp: recommended | '
        '**-2.00 ± 0.58** | none (+0.00 ± 0.00) | a CPU |'
    )


def test_page_is_made_from_rows_alone(tmp_path, monkeypatch):
    common = dict(macs_ratio=0.35, params_ratio=0.3, epochs=2, seconds=9.0, device='a CPU')
    for seed in (0, 1, 2):
        for length in (1.0, 3.0):
            for preset, top1 in (('uniform', 90.0 + seed), ('random', 91.5 + seed)):
                of = replace(SHORT, preset=preset, seed=seed, length=length)
                found = dict(common, top1=top1)
                setting.append_row(of, found, tmp_path / 'rows')
    setting.append_row(
        replace(SHORT, preset='random'), dict(found, device='a GPU', top1=1.0), tmp_path / 'rows'
    )
    tried = replace(SHORT, preset='uniform@lr=2', seed=report.TRIALS)
    on = dict(top1=1, device='a CPU')
    setting.append_row(tried, dict(on, validation_top1=88.0), tmp_path / 'rows')
    held = replace(tried, preset='uniform@lr=2,tuning=1')
    setting.append_row(held, dict(on, validation_top1=87.0), tmp_path / 'rows')
    other = replace(tried, length=3.0, preset='uniform@lr=9')
    setting.append_row(other, dict(on, validation_top1=89.0), tmp_path / 'rows')
    decided = dict(found, top1=1.0, validation_top1=77.0)
    setting.append_row(replace(SHORT, seed=report.TRIALS + 1), decided, tmp_path / 'rows')
    setting.append_row(replace(SHORT, method='given'), dict(found, top1=66.0), tmp_path / 'rows')
    for seed, index in itertools.product((0, 1), range(3)):
        member = dict(found, architecture=f'(({index},), (1.0,))', top1=80 + 0.3 * index + seed)
        of = replace(SHORT, preset=f'member@index={index}', seed=seed)
        setting.append_row(of, member, tmp_path / 'rows')
    for seed, budget, (preset, top1) in itertools.product(
        (0, 1, 2), (0.2, 0.4), (('budgets', 70.5), ('short', 70.0), ('afterwards', 69.0))
    ):
        of = replace(SHORT, method='stp', preset=preset, seed=seed, budget=budget, length=2.0)
        score = top1 + (preset == 'budgets') * (seed + budget)
        setting.append_row(of, dict(found, top1=score), tmp_path / 'rows')
    page = tmp_path / 'page.md'
    names = (
        'in_short', 'given_in_short', 'comparison', 'pictures', 'given', 'budgets', 'members',
        'recipes', 'tuning',
    )  # fmt: skip
    page.write_text('\n'.join(f'<!-- begin {n} -->\n<!-- end {n} -->' for n in names))
    arguments = ['report.py', '--rows', str(tmp_path / 'rows'), '--page', str(page)]
    monkeypatch.setattr(sys, 'argv', arguments)
    report.main()
    text = page.read_text()
    assert '| scratch: random | 3 | 92.50 ± 0.58 | **+1.50 ± 0.00** | 35.0% |' in text
    assert '| scratch: random | 1 | 1.00 |' in text  # of another device: compared with nothing
    assert text.count('### digits, r18_slim') == 11
    assert '| scratch: uniform | lr | **9: 89.00** |' in text
    assert text.count(', a GPU\n') == 1
    assert (
        '| stp: budgets | stp: short | **+1.70 ± 0.58** | **+1.90 ± 0.58** | **+1.80 ± 0.58** |'
        in text
    )
    assert '| stp: afterwards | stp: short |' + 3 * ' **-1.00 ± 0.00** |' in text
    assert '| given: uniform | 1 | 66.00 |' in text
    assert '| ((2,), (1.0,)) | 30.0% | 80.60 | 81.60 | 81.10 |' in text
    assert 'means, in points: 0.30; what noise alone would give: 0.00; of the architectures' in text
    assert '| scratch: uniform | 1 | 77.00 |' in text
    assert '| scratch: uniform | lr | **2: 88.00** |' in text
    assert '| scratch: uniform | tuning, lr=2 | 1: 87.00 |' in text
    drawn = {picture.name for picture in (tmp_path / 'images').glob('*.png')}
    assert len(drawn) == 2
    assert all(name in text for name in drawn)


def test_two_members_differ_as_a_paired_test_has_it():
    scores = {'a': (88.1, 88.6, 88.0), 'b': (87.9, 88.1, 87.8)}
    rows = [
        {'architecture': name, 'seed': seed, 'top1': top1, 'params_ratio': 0.1}
        for name, own in scores.items()
        for seed, top1 in enumerate(own)
    ]
    paired = stats.ttest_rel(*scores.values())
    said = (
        f'(F = {paired.statistic**2:.2f} with 1 and 2 degrees of freedom, p = {paired.pvalue:.2f})'
    )
    assert said in report.members(rows)


def test_effect_of_a_component_is_what_it_adds_wherever_it_is_on(tmp_path):
    # expansion, exploration, depth: those that a preset has
    has = {
        'paper': (1, 1, 1), 'paper-no-expansion': (0, 1, 1), 'paper-no-exploration': (1, 0, 1),
        'paper-no-depth': (1, 0, 0), 'paper-st-depth': (0, 0, 1), 'paper-st': (0, 0, 0),
    }  # fmt: skip
    for (preset, (expansion, exploration, depth)), seed in itertools.product(has.items(), (0, 1)):
        top1 = 80 + seed + expansion + 2 * exploration + 4 * depth
        of = replace(SHORT, method='stp', preset=preset, seed=seed)
        setting.append_row(of, {'top1': top1, 'device': 'a CPU'}, tmp_path)
    where = {name: getattr(SHORT, name) for name in report.all_but('device')}
    text = tables.table_5(argparse.Namespace(rows=tmp_path, device='a CPU', **where))
    for name, effect in (('expansion', 1), ('exploration', 2), ('depth', 4)):
        assert f'| {name} | 4 | **+{effect}.00 ± 0.00** |' in text


@pytest.mark.parametrize('flag', ['--data', '--networks'])
def test_names_that_are_none_are_refused_with_those_there_are(flag):
    with pytest.raises(SystemExit, match=rf'{flag}: nosuch is none of .*(digits|r18_slim)'):
        run.settings_of(run.parse([flag, 'nosuch']))


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        ('nosuch=3', 'nosuch is none of lr, tuning, '),
        ('lr=x', "'lr=x' is no option=number"),
        ('lr=2,l2', "'l2' is no option=number"),
    ],
)
def test_options_that_are_none_are_refused_before_anything_is_run(options, told):
    with pytest.raises(SystemExit, match=re.escape(told)):
        run.settings_of(run.parse(['--methods', f'stp:paper@{options}']))
    assert run.settings_of(run.parse(['--methods', 'stp:paper@lr=2']))
