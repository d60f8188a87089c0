"""Detectors with a pruned backbone and pruned as a whole, end to end, on scenes with digits.

``make demo-detection`` installs what it needs and runs it. A slim ResNet-50 is trained on
scikit-learn's handwritten digits, once as it is and once pruned to 35 % of its multiply-adds; then
Mask R-CNN is trained twice on scenes with digits, with either as its backbone. The one with the
dense backbone is then pruned as a whole, to half of its multiply-adds. ``--baselines`` adds the
compact backbone from random weights: what the digits' classifier was good for.
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.filterwarnings('ignore', 'faster_coco_eval is not installed')  # which mmdet can do without
warnings.filterwarnings('ignore', '.* instance named of .* has been created')  # by the run before

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from dataset_converters.digits_to_coco import write_data_set  # noqa: E402
from demo import ROOT, aligned, plain, ratio_of_times, run, set_epochs, top1  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from torch import nn  # noqa: E402

from mmstp.atomic_files import write_json  # noqa: E402
from mmstp.cli.launch import check_work_dir, load_config  # noqa: E402
from mmstp.deploy.detector_config import write_detector  # noqa: E402
from mmstp.deploy.export import WEIGHTS, check_folder, reload, write_export  # noqa: E402
from mmstp.deploy.onnx import as_onnx, session_of  # noqa: E402
from mmstp.stp.of_runner import stp_of  # noqa: E402
from mmstp.stp.tasks import with_task  # noqa: E402
from mmstp.stp.two_stages import dense_part  # noqa: E402
from mmstp.subnets.cut import count_macs  # noqa: E402

CLASSIFIER = ROOT / 'configs/stp/digits_r50_35pct.py'
DETECTOR = ROOT / 'configs/mask_rcnn/mask-rcnn_r50-slim_fpn_digits.py'
WHOLE = ROOT / 'configs/mask_rcnn/mask-rcnn-stp-50pct_r50-slim_fpn_digits.py'
SIZE = (3, 160, 160)  # of a scene
SCENES = {'train': 400, 'val': 150}
SHOWN = 6  # scenes in the picture
TIMED = ('backbone', 'whole', 'first stage')  # the last is timed where there is time


def prune(out: Path, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Trains the digits' classifiers and exports the subnet.

    Returns:
        What is known of the two, and the dense one's checkpoint.
    """
    config = load_config(str(CLASSIFIER))
    config.work_dir = str(out / 'stp')
    config.randomness = dict(seed=args.seed)
    if args.tiny:
        config.model.pool.size = 3
        for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            config[field].dataset.indices = 64
        set_epochs(config, 2)  # the search, then the survivor
    print('1. the digits: the dense classifier, then STP')
    dense = run(plain(config, config.model.model.to_dict(), 'dense'), 'dense')
    pruned = run(config, 'STP')
    stp = stp_of(pruned)
    description = write_export(out / 'export', stp.export(), config, stp, stp.pool.best)
    found = dict(
        architecture=description['architecture'], macs_ratio=description['macs_ratio'],
        dense_top1=top1(dense), subnet_top1=top1(pruned, 'subnet/'),
    )  # fmt: skip
    return found, str(Path(dense.work_dir) / f'epoch_{dense.max_epochs}.pth')


def detector_configs(out: Path, dense_weights: str, args: argparse.Namespace) -> dict[str, Config]:
    """Dense and compact detector, on the scenes, from their classifiers' weights."""
    compact = write_detector(out / 'export', str(DETECTOR))
    configs = {'dense': load_config(str(DETECTOR)), 'compact': load_config(str(compact))}
    if args.baselines:
        configs['scratch'] = load_config(str(compact))
        configs['scratch'].model.backbone.init_cfg = None
    configs['dense'].model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=dense_weights, prefix='backbone.'
    )
    for name, config in configs.items():
        on_scenes(config, out, name, args, epochs=1)
    return configs


def on_scenes(config: Config, out: Path, name: str, args: argparse.Namespace, epochs: int) -> None:
    """Gives a detector's config the scenes, a folder, and as many ``epochs`` in a check."""
    config.work_dir = str(out / f'detector_{name}')
    config.randomness = dict(seed=args.seed)
    for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[field].dataset.data_root = str(out / 'scenes') + '/'
    annotations = str(out / 'scenes/annotations/instances_val2017.json')
    config.val_evaluator.ann_file = config.test_evaluator.ann_file = annotations
    if args.tiny:
        set_epochs(config, epochs)
        for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            config[field].dataset.indices = 8
            config[field].num_workers = 0


def prune_whole(out: Path, dense: Runner, args: argparse.Namespace) -> tuple[Runner, nn.Module]:
    """Prunes the trained detector, exports it, and reads the export back."""
    config = load_config(str(WHOLE))
    on_scenes(config, out, 'whole', args, epochs=1)
    config.model.preset = 'pretrained'
    config.model.pretrained = str(Path(dense.work_dir) / f'epoch_{dense.max_epochs}.pth')
    pruned = run(config, 'whole')
    stp = stp_of(pruned)
    folder = out / 'detector_export'
    write_export(folder, stp.export(), config, stp, stp.pool.best)
    return pruned, reload(folder)


def average_precision(runner: Runner) -> dict[str, float]:
    """Of the last validation, for boxes and, where there are any, for masks, in percent."""
    kinds = {kind: f'val/coco/{kind}_mAP' for kind in ('bbox', 'segm')}
    hub = runner.message_hub
    return {
        kind: 100 * float(hub.get_scalar(key).current())
        for kind, key in kinds.items()
        if key in hub.log_scalars
    }


@torch.no_grad()
def draw(models: dict[str, Any], runner: Runner, path: Path) -> None:
    """Some scenes, one below the other: with what is there, and what each detector finds."""
    dataset: Any = runner.val_dataloader.dataset
    scenes = []
    for index in range(min(SHOWN, len(dataset))):
        sample = dataset[index]
        image = cv2.imread(sample['data_samples'].img_path)
        truth = dataset.get_data_info(index)['instances']
        boxes = [i['bbox'] for i in truth]
        pictures = [_drawn(image, boxes, [i['bbox_label'] for i in truth], [], [])]
        for model in models.values():
            batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
            found = model.test_step(batch)[0].pred_instances
            found = found[found.scores > 0.5].numpy()
            pictures.append(_drawn(image, found.bboxes, found.labels, found.scores, found.masks))
        scenes.append(pictures)
    each = max(picture.shape[1] for pictures in scenes for picture in pictures)
    rows = [
        np.hstack([np.pad(p, ((0, 8), (0, each - p.shape[1]), (0, 0))) for p in pictures])
        for pictures in scenes
    ]
    half = (len(rows) + 1) // 2
    columns = [np.vstack(rows[:half]), np.vstack(rows[half:] or [0 * rows[0]])]
    height = max(len(column) for column in columns)
    columns = [np.pad(c, ((0, height - len(c)), (0, 24), (0, 0))) for c in columns]
    title = np.full((28, columns[0].shape[1] * 2, 3), 40, np.uint8)
    names = ['there', *models]
    for column in range(2):
        for place, name in enumerate(names):
            x = column * columns[0].shape[1] + place * each + 4
            cv2.putText(title, name, (x, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255,) * 3, 1)
    cv2.imwrite(str(path), np.vstack([title, np.hstack(columns)]))


def _drawn(image: Any, boxes: Any, labels: Any, scores: Any, masks: Any) -> Any:
    """An image at twice its size with boxes, outlines of masks and labels."""
    zoom = 2
    picture = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    for mask in masks:
        large = cv2.resize(mask.astype(np.uint8), picture.shape[1::-1])
        outlines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, (60, 60, 255), 1)
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        left, top, right, bottom = (round(float(x) * zoom) for x in box)
        cv2.rectangle(picture, (left, top), (right, bottom), (90, 220, 90), 1)
        text = f'{label} {scores[i]:.2f}' if len(scores) else f'{label}'
        place = (left, top - 4 if top > 14 else bottom + 12)
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (90, 255, 255), 1)
    return picture


def main() -> None:
    """Writes scenes, prunes, trains both detectors, measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/demo_detection')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--baselines', action='store_true')
    parser.add_argument('--tiny', action='store_true', help='a check of the way alone')
    args = parser.parse_args()
    start = time.perf_counter()
    out = Path(args.work_dir).absolute()
    check_work_dir(args.work_dir)
    check_folder(out / 'export')  # rather than after the training
    summary, dense_weights = prune(out, args)
    print(f'2. scenes with digits in {args.work_dir}/scenes')
    write_data_set(out / 'scenes', {k: 8 if args.tiny else n for k, n in SCENES.items()}, 0)
    configs = detector_configs(out, dense_weights, args)
    print('3. Mask R-CNN on the dense backbone, then on the compact one')
    runners = {name: run(config, name) for name, config in configs.items()}
    print('4. the one with the dense backbone, pruned as a whole')
    runners['whole'], whole = prune_whole(out, runners['dense'], args)

    models: dict[str, Any] = {name: runner.model for name, runner in runners.items()}
    models['whole'] = whole
    batch = next(iter(runners['dense'].val_dataloader))
    functions = {
        name: functions_of(model.eval(), batch, onnx=not args.tiny)
        for name, model in models.items()
    }
    for name, model in models.items():
        summary[name] = {
            **average_precision(runners[name]),
            'backbone_macs': count_macs(model.backbone, (torch.zeros(1, *SIZE),)),
            'macs': detector_macs(model),
            'latency_ratios': {
                part: ratio_of_times(function, functions['dense'][part]) if name != 'dense' else 1.0
                for part, function in functions[name].items()
            },
        }
    summary |= dict(
        seed=args.seed,
        weights=str(Path(args.work_dir) / 'export' / WEIGHTS),
        seconds=time.perf_counter() - start,
    )
    draw(models, runners['dense'], out / 'detections.png')
    write_json(out / 'summary.json', summary)
    print(table(summary))
    print(f'picture: {args.work_dir}/detections.png   all numbers: {args.work_dir}/summary.json')


def detector_macs(model: Any) -> int:
    """Multiply-adds of a detector, with as many regions as it looks at in a test."""
    supernet, _ = with_task(copy.deepcopy(model), SIZE, {}, None)
    return int(supernet.cost.macs(supernet.space.largest)[0])


def functions_of(model: Any, batch: dict[str, Any], onnx: bool) -> dict[str, Callable[[], object]]:
    """What is timed: the backbone and the whole in PyTorch, the first stage in ONNX Runtime."""
    images = torch.zeros(1, *SIZE)
    found = {
        'backbone': lambda: model.backbone(images),
        'whole': lambda: model.test_step(batch),
    }
    if onnx:
        run = session_of(as_onnx(dense_part(model), images))
        found['first stage'] = lambda: run(images)
    return found


def table(summary: dict[str, Any]) -> str:
    """The result for a person."""
    rows = [
        ('Mask R-CNN', 'box AP', 'mask AP', 'MACs: backbone', 'whole', 'latency: backbone', 'whole',
         'first stage (ONNX)')
    ]  # fmt: skip
    for key, name in (
        ('dense', 'dense'),
        ('compact', 'compact backbone'),
        ('scratch', 'the same from random weights'),
        ('whole', 'compact detector'),
    ):
        if key in summary:
            found, dense = summary[key], summary['dense']
            macs = (f'{found[part] / dense[part]:.1%}' for part in ('backbone_macs', 'macs'))
            ratios = found['latency_ratios']
            times = (f'{ratios[part]:.2f}' if part in ratios else '' for part in TIMED)
            rows.append((name, f'{found["bbox"]:.1f}', f'{found["segm"]:.1f}', *macs, *times))
    result = (
        f'backbone {summary["architecture"]}; classifiers of digits: dense '
        f'{summary["dense_top1"]:.1f} %, subnet {summary["subnet_top1"]:.1f} %; '
        f'{summary["seconds"]:.0f} s'
    )
    return '\n'.join(['', *aligned(rows), '', result])


if __name__ == '__main__':
    main()
