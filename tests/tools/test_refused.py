"""What the tools refuse of files and flags: the message names which, what it is, what would do."""

import json
import os
import pickle

import pytest
import torch

from mmstp.cli.launch import load_config
from mmstp.deploy.export import DESCRIPTION, WEIGHTS
from mmstp.errors import CheckpointError, DetectorError, ExportError, LaunchError
from tests import tiny


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}',)


@pytest.fixture
def hostile(trained, tmp_path):
    """The checkpoint of a run with code in it; the file that the code would make."""
    content = torch.load(trained / 'epoch_2.pth', weights_only=False)
    mark = tmp_path / 'ran'
    torch.save({**content, 'more': Code(mark)}, tmp_path / 'hostile.pth')
    return tmp_path / 'hostile.pth', mark


def test_amp_without_an_accelerator(call, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr('mmengine.device.get_device', lambda: 'cpu')
    with pytest.raises(LaunchError, match=r'--amp needs an accelerator, and PyTorch finds none'):
        call('train.py', tiny_config, '--work-dir', tmp_path / 'run', '--amp')


@pytest.mark.parametrize('tool', ['export.py', 'test.py', 'train.py', 'compact', 'detector'])
def test_code_in_a_checkpoint_does_not_run(tool, call, tiny_config, export_copy, hostile, tmp_path):
    path, mark = hostile
    args = {
        'export.py': ('export.py', tiny_config, path, '--out', tmp_path / 'out'),
        'test.py': ('test.py', tiny_config, path, '--work-dir', tmp_path / 'test'),
        'train.py': ('train.py', tiny_config, '--work-dir', tmp_path / 'run', '--resume', path),
        'compact': ('test.py', export_copy / 'compact.py', path, '--work-dir', tmp_path / 'test'),
        'detector': ('export.py', export_copy / 'compact.py', export_copy / WEIGHTS, '--out',
                     export_copy, '--onnx'),
    }[tool]  # fmt: skip
    if tool == 'detector':
        (export_copy / WEIGHTS).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r'\.pth.* holds posix\.system, which is neither a'):
        call(*args)
    assert not mark.exists()


def test_a_config_in_a_checkpoint_is_not_executed(call, tiny_config, trained, tmp_path):
    """MMEngine's runner would, where older versions kept it; ours is parsed for plain values."""
    content = torch.load(trained / 'epoch_1.pth', weights_only=False)
    code = f'import pathlib\npathlib.Path({str(tmp_path / "ran")!r}).touch()\n'
    content['meta'].update(config=code, cfg=code + content['meta']['cfg'])
    torch.save(content, tmp_path / 'epoch_1.pth')
    call('train.py', tiny_config, '--work-dir', tmp_path / 'run', '--resume',
         tmp_path / 'epoch_1.pth')  # fmt: skip
    call('export.py', tiny_config, tmp_path / 'epoch_1.pth', '--out', tmp_path / 'out',
         '--num-images', 16)  # fmt: skip
    assert not (tmp_path / 'ran').exists()


def test_files_that_are_trusted_are_loaded(call, tiny_config, hostile, monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    call('export.py', tiny_config, hostile[0], '--out', tmp_path / 'out', '--num-images', 16)
    assert hostile[1].exists()


@pytest.mark.parametrize('content', [b'hello', b'{"a": 1}', b'', pickle.dumps([1])])
@pytest.mark.parametrize('tool', ['export.py', 'test.py'])
def test_other_files_are_named(tool, content, call, tiny_config, tmp_path):
    path = tmp_path / 'other.pth'
    path.write_bytes(content)
    option = '--out' if tool == 'export.py' else '--work-dir'
    with pytest.raises(CheckpointError, match=r"^checkpoint '.*other\.pth' cannot be read: it is "):
        call(tool, tiny_config, path, option, tmp_path / 'out')


# --- the head -------------------------------------------------------------------------------------


def test_a_head_of_other_classes_is_not_tested(call, exported, tmp_path):
    with pytest.raises(CheckpointError, match=r'do not fit this LinearClsHead \(head\):\n  fc\.we'):
        call('test.py', exported / 'compact.py', exported / WEIGHTS, '--work-dir', tmp_path,
             '--cfg-options', 'model.head.num_classes=7')  # fmt: skip


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda weights: weights.pop('head.fc.bias'), r'fc\.bias: missing in the checkpoint'),
        (lambda weights: weights.update({'head.x': torch.ones(1)}), r'x: \(1,\) in the .*not here'),
        (lambda weights: weights['head.fc.bias'].fill_(float('inf')),
         r'compact\.pth.*head\.fc\.bias holds 10 of 10 numbers that are not finite'),
    ],
)  # fmt: skip
def test_a_head_that_lacks_weights_is_not_tested(change, message, call, export_copy, tmp_path):
    content = torch.load(export_copy / WEIGHTS, weights_only=True)
    change(content['state_dict'])
    torch.save(content, export_copy / WEIGHTS)
    with pytest.raises(CheckpointError, match=message):
        call('test.py', export_copy / 'compact.py', export_copy / WEIGHTS, '--work-dir', tmp_path)


def test_dense_classifiers_may_come_with_more(call, tiny_config, tmp_path):
    """But not with less."""
    config = load_config(str(tiny_config))
    weights = {k.removeprefix('model.'): v for k, v in tiny.stp().state_dict().items()}
    config.model = config.model.model
    config.custom_hooks = []
    config.dump(tmp_path / 'dense.py')
    torch.save({'state_dict': {**weights, 'head.x': torch.ones(1)}}, tmp_path / 'more.pth')
    for flags in ([], ['--tta']):
        call('test.py', tmp_path / 'dense.py', tmp_path / 'more.pth', '--work-dir',
             tmp_path / 'run', *flags)  # fmt: skip
    weights.pop('head.fc.weight')
    torch.save({'state_dict': weights}, tmp_path / 'less.pth')
    for flags in ([], ['--tta']):
        with pytest.raises(CheckpointError, match=r'fc\.weight: missing'):
            call('test.py', tmp_path / 'dense.py', tmp_path / 'less.pth', '--work-dir',
                 tmp_path / 'run', *flags)  # fmt: skip


def test_an_export_is_not_written_over_by_a_runner(call, export_copy):
    before = (export_copy / 'compact.py').read_text()
    with pytest.raises(LaunchError, match=r'work_dir .*copy. is the folder of .*compact\.py'):
        call(
            'test.py', export_copy / 'compact.py', export_copy / WEIGHTS, '--work-dir', export_copy
        )
    assert (export_copy / 'compact.py').read_text() == before


# --- flags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('number', ['-5', '2.5', 'many', '1_0'])
def test_numbers_of_images(number, call, tiny_config, tmp_path, capsys):
    with pytest.raises(SystemExit, match='2'):
        call('export.py', tiny_config, 'a.pth', '--out', tmp_path, f'--num-images={number}')
    assert f'--num-images: {number!r}: expected a whole number' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('out', 'message'),
    [
        ('', r"--out '' names no folder"),
        ('{folder}/file', r'--out .*file. cannot be written: Not a directory.*with --out'),
        ('{folder}/link/x', r'--out .*link/x. cannot be written: No such file'),
    ],
)  # fmt: skip
def test_folders_for_the_export(out, message, call, tiny_config, trained, tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(LaunchError, match=message):
        call('export.py', tiny_config, trained / 'epoch_2.pth', '--out',
             out.format(folder=tmp_path))  # fmt: skip


def test_fewer_images_than_a_batch(call, tiny_config, tmp_path):
    with pytest.raises(LaunchError, match=r'no batch: 10 images, fewer than the 16 of a batch'):
        call('train.py', tiny_config, '--work-dir', tmp_path, '--cfg-options',
             'train_dataloader.dataset.indices=10')  # fmt: skip


def test_missing_data_leave_no_folder(call, tiny_config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'data_root'):
        call('train.py', tiny_config, '--work-dir', tmp_path / 'new', '--cfg-options',
             'train_dataloader.dataset.type=ImageNet',
             'train_dataloader.dataset.data_root=nowhere')  # fmt: skip
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('model.widths=[0.5]', r'model \(mmstp\.STP\) has no field .widths.'),
        ('model.pool.sise=5', r"model\.pool has no field 'sise': did you mean 'size'"),
        ('model.space.width=[0.5]', r"model\.space has no field 'width'"),
        ('model.input_shape=32', r'model\.input_shape=32: expected'),
        ('model.space=x', r"model\.space='x': expected"),
        ('model.survivor.rate=1', r"model\.survivor has no field 'rate'"),
    ],
)
def test_fields_are_refused_without_data_as_with_them(option, message, call, tiny_config):
    with pytest.raises(TypeError, match=message):
        call('search_space.py', tiny_config, '--cfg-options', option)


def test_sharded_parameters_are_refused_before_anything_is_built(call, tiny_config, tmp_path):
    with pytest.raises(RuntimeError, match=r'model_wrapper_cfg\.type=.*FSDP'):
        call('train.py', tiny_config, '--work-dir', tmp_path, '--cfg-options',
             'model_wrapper_cfg.type=MMFullyShardedDataParallel')  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('detector', ['{export}/compact.py', '{config}'])
def test_a_classifier_is_no_detector(detector, call, tiny_config, export_copy):
    detector = detector.format(export=export_copy, config=tiny_config)
    with pytest.raises(DetectorError, match=r'is the config of a classifier \(model\.type is '):
        call('export.py', export_copy / 'compact.py', export_copy / WEIGHTS, '--out', export_copy,
             '--detector', detector)  # fmt: skip


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', r'architecture\.json cannot be read: JSONDecodeError'),
        ('[1]', r'architecture\.json holds \[1\]; expected an object'),
        ('{}', r'architecture\.json: backbone is missing; expected'),
        (json.dumps({'backbone': 'backbone.py', 'one_size': 3}), r'one_size is 3; expected a str'),
        (json.dumps({'backbone': 'backbone.py', 'one_size': None, 'input_shape': [3, '8']}),
         r"input_shape is \[3, '8'\]; expected \[channels, height, width\]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize('flags', [('--onnx',), ('--detector', 'mmdet::x.py')])
def test_descriptions_that_are_damaged(flags, text, message, call, export_copy):
    pytest.importorskip('onnxruntime')
    (export_copy / DESCRIPTION).write_text(text)
    with pytest.raises(ExportError, match=message):
        call('export.py', export_copy / 'compact.py', export_copy / WEIGHTS, '--out', export_copy,
             *flags)  # fmt: skip


def test_names_of_checkpoints_do_not_get_into_the_configs(call, tiny_config, trained, tmp_path):
    """A head is a comment; MMEngine replaces what stands in braces, there too."""
    path = tmp_path / 'a\nraise SystemExit(7)\n{{ fileDirname }}.pth'
    path.write_bytes((trained / 'epoch_2.pth').read_bytes())
    out = tmp_path / 'out'
    call('export.py', tiny_config, path, '--out', out, '--num-images', 16)
    for name in ('compact.py', 'backbone.py'):
        head = (out / name).read_text().splitlines()[2]
        assert 'raise SystemExit(7) { { fileDirname }}.pth' in head
        assert head.startswith('# Cut out of ')


def test_exports_know_the_names_of_the_classes(exported):
    meta = torch.load(exported / WEIGHTS, weights_only=True)['meta']
    assert meta['dataset_meta'] == {'classes': tuple('0123456789')}


def test_inference_says_the_names_of_the_classes(exported):
    from mmpretrain import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(
        str(exported / 'compact.py'), pretrained=str(exported / WEIGHTS)
    )
    assert tuple(inferencer.classes) == tuple('0123456789')


def test_the_folder_is_looked_at_before_the_demo_trains(call, tmp_path):
    for tool in ('demo.py', 'demo_detection.py'):
        with pytest.raises(ExportError, match='an export cannot lie in the folder'):
            call(tool, '--work-dir', tmp_path / "it's")
