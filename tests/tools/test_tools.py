"""The command-line tools, run as a user does."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import mmpretrain
import pytest
import torch
from mmengine.config import Config

from mmstp.errors import CheckpointError, LaunchError
from tests import tiny
from tests.runs import free_port

TOOLS = tiny.ROOT / 'tools'


def test_train_export_test(call, tiny_config, trained, tmp_path):
    call('test.py', tiny_config, trained / 'epoch_2.pth', '--work-dir', tmp_path / 'test',
         '--out', tmp_path / 'supernet.json', '--out-item', 'metrics')  # fmt: skip
    call('export.py', tiny_config, trained / 'epoch_2.pth', '--out', tmp_path / 'out',
         '--num-images', 32)  # fmt: skip
    call('test.py', tmp_path / 'out/compact.py', tmp_path / 'out/compact.pth',
         '--work-dir', tmp_path / 'compact', '--out', tmp_path / 'compact.json',
         '--out-item', 'metrics')  # fmt: skip
    supernet = json.loads((tmp_path / 'supernet.json').read_text())
    compact = json.loads((tmp_path / 'compact.json').read_text())
    assert compact['accuracy/top1'] == supernet['subnet/accuracy/top1']
    best = json.loads((trained / 'best_architecture.json').read_text())
    exported = json.loads((tmp_path / 'out/architecture.json').read_text())
    assert exported['architecture'] == best['architecture']


def test_any_architecture_of_the_space_can_be_exported(call, tiny_config, trained, tmp_path):
    text = '((1, 2, 1, 2), (0.5, 0.3, 1.0, 0.7))'
    call('export.py', tiny_config, trained / 'epoch_2.pth', '--out', tmp_path,
         '--architecture', text, '--num-images', 32)  # fmt: skip
    described = json.loads((tmp_path / 'architecture.json').read_text())
    assert described['architecture'] == text
    assert described['budget'] is None
    assert '# Meets no budget of its run.' in (tmp_path / 'compact.py').read_text()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('((1, 2), (0.5', r'does not parse: expected'),
        ('((1, 2, 1), (0.5, 0.3, 1.0))', r'has 3 stages, this space has 4'),
        ('((1, 2, 1, 9), (0.5, 0.3, 1.0, 0.7))', r"stage 'backbone\.layer4' cannot keep 9 blocks"),
        ('((1, 2, 1, 2), (0.5, 0.3, 1.0, 0.6))', r'cannot keep 0\.6 of its channels; choices'),
    ],
)
def test_architectures_that_do_not_fit_are_explained(
    call, tiny_config, trained, tmp_path, text, message
):
    with pytest.raises(ValueError, match=message):
        call('export.py', tiny_config, trained / 'epoch_2.pth', '--out', tmp_path,
             '--architecture', text)  # fmt: skip


def test_search_space_tells_what_there_is(call, tiny_config, capsys):
    call('search_space.py', tiny_config, '--cfg-options', 'model.target._delete_=True',
         'model.target.macs=0.4', 'model.target.params=0.3')  # fmt: skip
    text = capsys.readouterr().out
    assert 'backbone.layer4' in text
    assert 'head.fc: an output of the model' in text
    assert '10,000 architectures' in text
    assert 'met by' in text
    assert re.search(r'of the limit of params they use [\d.]+% to [\d.]+%', text)


@pytest.mark.parametrize(
    ('development', 'setting', 'sentence'),
    [
        (True, 'model.target=-1', 'target=-1: expected a fraction'),
        (False, 'model.preset=quick', "model.preset='quick': expected one of paper, recommended"),
    ],
)
def test_an_error_of_mmstp_is_told_in_its_sentence(development, setting, sentence, tiny_config):
    flags = ['-X', 'dev'] if development else []
    done = subprocess.run(
        [sys.executable, *flags, '-W', 'ignore', TOOLS / 'search_space.py', tiny_config,
         '--cfg-options', setting],
        capture_output=True, text=True, check=False, cwd=tiny.ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if sentence in line]
    assert len(told) == 1
    assert ('Traceback' in done.stderr) == development


@pytest.mark.parametrize(
    'setting', ['model.target', 'model.target=dict(macs=0.35,params=0.4)', 'model.target=[1,(2]']
)
def test_setting_that_cannot_be_read_is_named(setting, call, tiny_config, capsys):
    with pytest.raises(SystemExit, match='2'):
        call('search_space.py', tiny_config, '--cfg-options', 'model.tolerance=0.1', setting)
    assert f'{setting!r}: expected key=value, a list as key=[a,b]' in capsys.readouterr().err


def test_search_space_refuses_what_training_would(call, tiny_config):
    with pytest.raises(ValueError, match=r'norms stay in eval mode in training \(norm_eval=True'):
        call('search_space.py', tiny_config, '--cfg-options', 'model.model.backbone.norm_eval=True')


def test_search_space_tells_that_a_target_cannot_be_met(call, tiny_config, capsys):
    with pytest.raises(SystemExit, match='1'):
        call('search_space.py', tiny_config, '--cfg-options', 'model.target=0.01')
    assert 'cannot be met' in capsys.readouterr().out


def test_resume_flag_goes_on_from_the_latest(call, tiny_config, trained, tmp_path):
    for name in ('epoch_1.pth',):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    call('train.py', tiny_config, '--work-dir', tmp_path, '--resume')
    expected, found = (
        torch.load(folder / 'epoch_2.pth', weights_only=False) for folder in (trained, tmp_path)
    )
    assert found['mmstp'] == expected['mmstp']
    for name, tensor in expected['state_dict'].items():
        assert torch.equal(tensor, found['state_dict'][name]), name


def test_no_validate(call, tiny_config, tmp_path):
    call('train.py', tiny_config, '--work-dir', tmp_path, '--no-validate',
         '--cfg-options', 'train_cfg.max_epochs=1')  # fmt: skip
    assert (tmp_path / 'epoch_1.pth').exists()
    saved = Config.fromfile(next(tmp_path.glob('*.py')))
    assert saved.val_dataloader is None


def test_unwritable_work_dir(call, tiny_config, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(LaunchError, match=r'work_dir .*file/dir.* cannot be written.*--work-dir'):
        call('train.py', tiny_config, '--work-dir', tmp_path / 'file' / 'dir')


def test_missing_config_and_missing_data(call, tmp_path):
    with pytest.raises(LaunchError, match=r"config 'none\.py' is not a file"):
        call('train.py', 'none.py')
    with pytest.raises(FileNotFoundError, match=r'train_dataloader\.dataset\.data_root'):
        call('train.py', tiny.ROOT / 'configs/stp/r50_15pct.py', '--work-dir', tmp_path,
             '--cfg-options', f'train_dataloader.dataset.data_root={tmp_path}/nowhere')  # fmt: skip


def test_export_wants_a_checkpoint_of_the_run(call, tiny_config, tmp_path):
    torch.save({'state_dict': {}}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match=r'other\.pth.* was not written by an STP run'):
        call('export.py', tiny_config, tmp_path / 'other.pth', '--out', tmp_path / 'out')
    (tmp_path / 'cut.pth').write_bytes(b'')
    with pytest.raises(CheckpointError, match=r'cut\.pth.* cannot be read'):
        call('export.py', tiny_config, tmp_path / 'cut.pth', '--out', tmp_path / 'out')


def test_a_small_network_can_be_trained_without_a_search(call, tiny_config, tmp_path):
    call('export.py', tiny_config, '--architecture', 'uniform', '--out', tmp_path / 'out')
    described = json.loads((tmp_path / 'out/architecture.json').read_text())
    assert described['macs_ratio'] == pytest.approx(0.4, rel=0.1)
    call('train.py', tmp_path / 'out/compact.py', '--work-dir', tmp_path / 'run')
    assert (tmp_path / 'run/epoch_2.pth').exists()
    with pytest.raises(LaunchError, match='without a checkpoint nothing was searched'):
        call('export.py', tiny_config, '--out', tmp_path / 'other')


def test_compact_weights_in_another_compact_config(call, tiny_config, trained, tmp_path):
    for name, text in (('a', '((1, 1, 1, 1), (0.5, 0.5, 0.5, 0.5))'),
                       ('b', '((2, 2, 2, 2), (1.0, 0.5, 0.5, 0.5))')):  # fmt: skip
        call('export.py', tiny_config, trained / 'epoch_2.pth', '--out', tmp_path / name,
             '--architecture', text, '--num-images', 32)  # fmt: skip
    with pytest.raises(CheckpointError, match=r'do not fit this ResNet_CIFAR \(backbone\)'):
        call('test.py', tmp_path / 'a/compact.py', tmp_path / 'b/compact.pth',
             '--work-dir', tmp_path / 'test')  # fmt: skip


def test_pool_is_plotted(call, trained, tmp_path):
    call('analysis_tools/plot_pool.py', trained, '--out', tmp_path / 'pool.png')
    assert (tmp_path / 'pool.png').stat().st_size > 10_000
    with pytest.raises(FileNotFoundError, match=r'holds no \*/vis_data/scalars\.json'):
        call('analysis_tools/plot_pool.py', tmp_path)


def test_demo_writes_its_summary(call, tmp_path, capsys):
    call('demo.py', '--epochs', 2, '--work-dir', tmp_path, '--baselines', '--tiny')
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert {
        'dense_top1', 'subnet_top1', 'macs_ratio', 'params_ratio', 'latency_ratio',
        'architecture', 'export_max_abs_diff', 'seconds', 'scratch_top1', 'l1_top1',
    } <= set(summary)  # fmt: skip
    assert summary['export_max_abs_diff'] == 0
    assert summary['macs_ratio'] == pytest.approx(0.15, rel=0.02)
    assert 'subnet, cut out' in capsys.readouterr().out
    assert (tmp_path / 'pool.png').exists()


def dist_train(config, work_dir, *options, **env):
    """``tools/dist_train.sh CONFIG 2``, which ends within five minutes."""
    return subprocess.run(
        ['bash', str(TOOLS / 'dist_train.sh'), str(config), '2', '--work-dir', str(work_dir),
         '--cfg-options', *options],
        env={**os.environ, 'PYTHON': sys.executable, 'PORT': str(free_port()),
             'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(tiny.ROOT), **env},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_dist_train_runs_two_processes(tiny_config, tmp_path):
    done = dist_train(tiny_config, tmp_path, 'train_cfg.max_epochs=1')
    assert done.returncode == 0, done.stderr[-3000:]
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    assert saved['meta']['iter'] == 2  # 64 images in batches of 2 x 16
    assert len(saved['mmstp']['pool']['architectures']) == 1


FAILING = """
import os
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Failing(Hook):
    def before_train_iter(self, runner, *args, **kwargs):
        if runner.rank == 1 and runner.iter == 1:
            if {killed}:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError('no image could be read')
"""


@pytest.mark.slow
@pytest.mark.parametrize('killed', [False, True])
def test_a_rank_that_dies_ends_the_job_with_its_error(killed, tiny_config, tmp_path):
    (tmp_path / 'failing.py').write_text(FAILING.format(killed=killed))
    config = Config.fromfile(tiny_config)
    config.custom_imports.imports.append('failing')
    config.custom_hooks.append(dict(type='Failing'))
    config.default_hooks.checkpoint.update(by_epoch=False, interval=1)
    config.dump(tmp_path / 'config.py')
    began = time.monotonic()
    paths = f'{tiny.ROOT}:{tmp_path}'
    done = dist_train(tmp_path / 'config.py', tmp_path, 'train_cfg.max_epochs=1', PYTHONPATH=paths)
    assert time.monotonic() - began < 90
    assert done.returncode == 1
    said = 'Signal 9 (SIGKILL) received by PID' if killed else 'no image could be read'
    assert said in done.stderr
    assert 'rank      : 1 (local_rank: 1)' in done.stderr
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_1.pth']


@pytest.mark.parametrize('script', sorted(TOOLS.glob('*.sh')), ids=lambda path: path.name)
def test_launchers_without_arguments_say_how_to_call_them(script):
    done = subprocess.run(['bash', str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert script.name in done.stderr


def test_slurm_launcher_passes_everything_on(tmp_path):
    (tmp_path / 'srun').write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'GPUS': '4'}
    done = subprocess.run(
        ['bash', str(TOOLS / 'slurm_train.sh'), 'part', 'job', 'a.py', 'dir', '--amp'],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert '-p part --job-name=job' in done.stdout
    assert '--ntasks=4' in done.stdout
    assert done.stdout.strip().endswith('train.py a.py --work-dir dir --launcher slurm --amp')


@pytest.mark.filterwarnings('ignore:Detected call of .scheduler.step:UserWarning')
def test_mmpretrain_s_picture_of_the_learning_rate(tiny_config, monkeypatch, tmp_path):
    """It puts another model into the run, so the hooks of STP stay out, as docs/prune.md says."""
    tool = Path(mmpretrain.__file__).parent / '.mim/tools/visualization/vis_scheduler.py'
    if not tool.is_file():
        pytest.skip('mmpretrain was installed without its tools')
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    monkeypatch.setattr(sys, 'argv', [
        'vis_scheduler.py', str(tiny_config), '--not-show', '--save-path', str(tmp_path / 'a.png'),
        '--cfg-options', 'custom_hooks=[]', f'work_dir={tmp_path}',
    ])  # fmt: skip
    runpy.run_path(str(tool), run_name='__main__')
    assert (tmp_path / 'a.png').stat().st_size > 10_000
