"""Tests a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``.

For the config of an STP run it reports the main network and the best subnet (``subnet/…``); for the
configs that ``tools/export.py`` writes, the compact network and detectors that have it. There
``compact.onnx`` is taken, too: ONNX Runtime then does what the file holds.
"""

import argparse
from copy import deepcopy
from pathlib import Path

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.registry import METRICS, RUNNERS
from mmengine.runner import Runner

from mmstp.checkpoints import plain_loading, read_checkpoint, weights_of
from mmstp.cli.launch import (
    add_common_arguments,
    check_data,
    is_detection,
    is_export,
    is_stp,
    leave_processes,
    load_config,
    prepare,
    require_whole,
    tell_errors_plainly,
)
from mmstp.cli.same_run import refuse_other_run
from mmstp.deploy.dynamic_backbone import CalibrationHook
from mmstp.deploy.export import WEIGHTS, read_description
from mmstp.deploy.onnx import run_in_onnx
from mmstp.errors import LaunchError
from mmstp.registry import HOOKS, type_of
from mmstp.stp.hooks.evaluation import SubnetEvalHook
from mmstp.stp.of_runner import unwrapped

ONNX = '.onnx'
_CLASSIFICATION_TTA = dict(type='mmpretrain.AverageClsScoreTTA')
_DETECTION_TTA = dict(
    type='DetTTAModel',  # mmdet has it in MMEngine's registry
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
)
_DETECTION_KEYS = (
    'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction',
)  # fmt: skip


def parse_args() -> argparse.Namespace:
    """The flags of ``tools/test.py`` in mmpretrain and mmdet."""
    parser = argparse.ArgumentParser(description='Test (and eval) a model')
    parser.add_argument('config', help='test config file path')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='the file to output results to')
    parser.add_argument(
        '--out-item', choices=['metrics', 'pred'], help='what --out holds (default: predictions)'
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--show-dir', help='folder for the images with predictions')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--interval', type=int, default=1, help='visualize every n-th sample')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per window')
    parser.add_argument(
        '--tta', action='store_true',
        help='test-time augmentation: tta_model and tta_pipeline of the config, else flips',
    )  # fmt: skip
    add_common_arguments(parser)
    args = parser.parse_args()
    if args.out is None and args.out_item is not None:
        parser.error('--out-item needs --out')
    return args


def merge_args(config: Config, args: argparse.Namespace) -> None:
    """Merges the flags into the config."""
    prepare(config, args)
    config.load_from = weights_for(config, args.checkpoint)
    if args.amp:
        config.test_cfg.fp16 = True
    if args.show or args.show_dir is not None:
        if 'visualization' not in config.get('default_hooks', {}):
            raise LaunchError('--show needs default_hooks.visualization in the config')
        drawn = (
            dict(draw=True, test_out_dir=args.show_dir)
            if is_detection(config)
            else dict(enable=True, out_dir=args.show_dir)
        )
        config.default_hooks.visualization.update(
            show=args.show, wait_time=args.wait_time, interval=args.interval, **drawn
        )
    if args.tta:
        _use_tta(config)


def weights_for(config: Config, path: str) -> str:
    """The checkpoint: where an ONNX file is tested, that of its export, for what it lacks."""
    if not path.endswith(ONNX):
        return path
    if not is_export(config) or not Path(path).is_file():
        raise LaunchError(
            f'{path}: expected the compact.onnx that tools/export.py --onnx wrote, and the config '
            'of that export, compact.py beside it'
        )
    return str(Path(path).with_name(WEIGHTS))


def _use_tta(config: Config) -> None:
    if is_stp(config):
        raise LaunchError('--tta wraps the model; export the subnet and test that with --tta')
    dataset = config.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    *before, pack = dataset.pipeline
    if 'tta_pipeline' not in config:
        if is_detection(config):
            pack = dict(type='PackDetInputs', meta_keys=_DETECTION_KEYS)
        flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
        tta = dict(type='TestTimeAug', transforms=[flips, [pack]])
        config.tta_pipeline = [*deepcopy(before), tta]
    default = _DETECTION_TTA if is_detection(config) else _CLASSIFICATION_TTA
    config.model = ConfigDict(**config.get('tta_model', default), module=config.model)
    dataset.pipeline = config.tta_pipeline


def check_checkpoint(config: Config, path: str) -> None:
    """Whether it can be read, holds finite weights, and is one of this run where that shows."""
    if '://' in path:
        return
    content = read_checkpoint(path)
    weights_of(content, path)
    if is_stp(config):
        refuse_other_run(config, content, path)


def test(config: Config, args: argparse.Namespace) -> dict[str, float]:
    """Builds the runner and runs it; returns the metrics."""
    runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    if not is_stp(config) and isinstance(runner, Runner):  # STP is strict itself
        model = unwrapped(runner)
        network = model.module if args.tta else model
        require_whole(network, model_config(config) if args.tta else config)
        if args.checkpoint.endswith(ONNX):
            shape = read_description(Path(args.checkpoint).parent)['input_shape']
            run_in_onnx(network, args.checkpoint, shape)
    if args.out and args.out_item != 'metrics':
        dump = 'mmdet.DumpDetResults' if is_detection(config) else 'mmengine.DumpResults'
        runner.test_evaluator.metrics.append(METRICS.build(dict(type=dump, out_file_path=args.out)))
    metrics: dict[str, float] = runner.test()
    return metrics


def model_config(config: Config) -> Config:
    """The config without the model around the model that test-time augmentation puts there."""
    return Config({**config.to_dict(), 'model': config.model.module})


def main() -> None:
    """Checks, builds and tests."""
    args = parse_args()
    config = load_config(args.config, args.cfg_options)
    merge_args(config, args)
    hooks = [type_of(hook['type'], HOOKS) for hook in config.get('custom_hooks') or []]
    # a subnet's statistics are estimated on training images
    train = ['train_dataloader'] if {SubnetEvalHook, CalibrationHook} & {*hooks} else []
    check_data(config, 'test_dataloader', *train)
    check_checkpoint(config, config.load_from)
    with plain_loading():
        metrics = test(config, args)
    if args.out and args.out_item == 'metrics':
        mmengine.dump(metrics, args.out)
    leave_processes()


if __name__ == '__main__':
    tell_errors_plainly()
    main()
