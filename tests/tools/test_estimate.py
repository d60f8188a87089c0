"""What a run would cost, by ``tools/search_space.py --estimate``."""

import re

import pytest

from mmstp.cli.estimate import estimate
from tests import tiny

MISSING = dict(type='ImageNet', data_root='nowhere', pipeline=[])


def phases(text):
    """Median seconds of a step, its ratio to the dense network's, and the steps, by phase."""
    rows = re.findall(r'^(\w+) +([\d.]+) s +([\d.]+) \(.*?\) .*?([\d,]+|–)(?:  .*)?$', text, re.M)
    return {name: (float(step), float(ratio), steps) for name, step, ratio, steps in rows}


def test_every_phase_of_the_schedule_is_tried(call, tiny_config, capsys):
    call('search_space.py', tiny_config, '--estimate', 3, '--cfg-options',
         'model.preset=recommended', 'model.survivor.teacher=main')  # fmt: skip
    text = capsys.readouterr().out
    assert 'met by' in text  # the report is there as well
    found = phases(text)
    steps = {name: row[2].strip() for name, row in found.items()}
    # 4 batches of 16 in each of 2 epochs; PoolHook.end=0.75
    assert steps == {'search': '6', 'dense': '–', 'survivor': '2'}
    assert found['dense'][1] == 1
    assert found['search'][1] > found['survivor'][1]  # three passes, against a third of one and one
    assert re.search(r'total .* for the run: [\d.]+ of dense training', text)
    assert re.search(r'the survivor phase saves \d+% of', text)
    assert 'batches of 16 images of train_dataloader' in text
    assert re.search(r'memory +\d+\.\d\d GiB', text)


@pytest.mark.parametrize(
    ('survivor', 'steps'), [(False, ('6', '2')), ({}, ('4', '2', '2'))]
)  # fmt: skip
def test_the_main_network_is_alone_at_first(survivor, steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny.config(model__survivor=survivor)
    config.custom_hooks[0].update(begin=0.25)
    found = {name: row[2].strip() for name, row in phases(estimate(config, 1)).items()}
    assert found == dict(zip(('search', 'dense', 'survivor'), steps, strict=False))


def test_the_survivors_of_several_budgets_are_one_phase(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = estimate(tiny.config(model__target=[0.3, 0.6], model__survivor={}), 1)
    assert {name: row[2].strip() for name, row in phases(text).items()} == {
        'search': '6', 'dense': '–', 'survivor': '2',
    }  # fmt: skip
    assert re.search(r'the survivor phase (saves|adds) \d+% of', text)


def test_without_data_the_images_are_random(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny.config(train_dataloader__dataset=MISSING)
    text = estimate(config, 1)
    assert 'batches of 16 random images of shape (3, 16, 16)' in text
    assert "train_dataloader.dataset.data_root = 'nowhere'" in text
    assert phases(text)['search'][2] == '1,000'
    assert 'survivor' not in phases(text)
    assert not list(tmp_path.iterdir())


def test_steps_of_detectors_depend_on_their_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny.config(default_scope='mmdet', train_dataloader__dataset=MISSING)
    with pytest.raises(FileNotFoundError, match=r'data_root = .nowhere.'):
        estimate(config, 1)
