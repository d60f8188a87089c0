"""The page with a whole config of one's own, done as it says."""

import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from mmstp.cli.launch import build_stp, load_config
from tests import tiny

PAGE = (tiny.ROOT / 'docs/own_config.md').read_text()
PYTHON = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line.removeprefix('python tools/'))
    for line in PAGE.splitlines()
    if line.startswith('python tools/')
]
CLASSES = ('daisy', 'rose', 'tulip')
# a few images, an epoch
LESS = [
    'train_dataloader.batch_size=4', 'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0', 'test_dataloader.num_workers=0', 'model.pool.size=3',
    'train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'log_level=ERROR',
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's config and images, from which its commands are called."""
    for part in ('train', 'val'):
        for label, name in enumerate(CLASSES):
            for i in range(4):
                path = tmp_path / f'data/flowers/{part}/{name}/{i}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(i).integers(0, 80, (80, 96, 3), dtype=np.uint8)
                Image.fromarray(pixels + 80 * label).save(path)
    (tmp_path / 'flowers.py').write_text(PYTHON[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_images_to_a_network(folder, call, capsys):
    names = [command[0] for command in COMMANDS]
    assert names == ['search_space.py', 'train.py', 'export.py', 'test.py']
    for tool, *args in COMMANDS:
        args = [arg.replace('epoch_200', 'epoch_1') for arg in args]
        few = LESS if tool != 'test.py' else ['test_dataloader.num_workers=0']
        call(tool, *args, '--cfg-options', *few)
        if tool == 'search_space.py':
            assert 'met by' in capsys.readouterr().out
    export = folder / 'work_dirs/flowers/export'
    meta = torch.load(export / 'compact.pth', weights_only=True)['meta']
    assert meta['dataset_meta'] == {'classes': CLASSES}
    exec(PYTHON[1], {})
    assert capsys.readouterr().out.strip().endswith(CLASSES)


def test_around_a_config_that_is_there(folder):
    whole = load_config('flowers.py')
    mine = whole.copy()
    mine.model, mine.custom_hooks = whole.model.model, []
    mine.dump('mine.py')
    (folder / 'wrapped.py').write_text(PYTHON[2])
    wrapped = load_config('wrapped.py')
    assert wrapped.model.to_dict() == whole.model.to_dict()
    assert wrapped.custom_hooks == whole.custom_hooks
    assert build_stp(wrapped).budget.limits[0].metric == 'macs'
