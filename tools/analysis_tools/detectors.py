"""Which detectors of mmdet take an exported network: ``python tools/analysis_tools/detectors.py``.

Of every folder of mmdet's configs the one with ResNet-50 and the shortest name (where there is
none, of all) is given to `mmstp.detection.write_detector` for a ResNet-50 of about 35 % of its
multiply-adds with random weights: its backbone is replaced, loaded and compared with the export,
and the detector looks at an image. The same detector is then pruned as a whole: it is converted, a
step is trained, and a subnet is exported and compared. Every config has a process of its own and
``--seconds`` for either.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

sys.path.insert(0, str(Path(__file__).parent))

from pages import environment, insert, table
from processes import in_process

from mmstp.cli.launch import build_stp, load_config
from mmstp.deploy.detector_config import UNTRIED, write_detector
from mmstp.deploy.export import write_export
from mmstp.errors import DetectorError
from mmstp.foreign import pytree
from mmstp.registry import build_model

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
SIDE = 160  # of the images that whole detectors are pruned for
QUERIES = 100  # at most: where the best positions become queries, these images have too few


def detectors() -> list[str]:
    """A config of every folder, as ``mmdet::`` names it."""
    chosen = []
    for folder in sorted(CONFIGS.iterdir()):
        files = list(folder.glob('*r50*.py')) or list(folder.glob('*.py'))
        if files and folder.name != '_base_':
            best = min(files, key=lambda file: (len(file.name), file.name))
            chosen.append(f'mmdet::{folder.name}/{best.name}')
    return chosen


def export_steps(folder: Path) -> Iterator[dict[str, Any]]:
    """The network that becomes a backbone."""
    config = load_config(str(ROOT / 'configs/stp/r50_35pct.py'), {'model.pool.seed': 0})
    stp = build_stp(config)
    write_export(folder, stp.export(), config, stp, stp.pool.best)
    yield {'architecture': str(stp.pool.best)}


def steps(detector: str, export: Path) -> Iterator[dict[str, Any]]:
    """What becomes of a detector's config."""
    logging.disable(logging.INFO)
    warned: list[str] = []
    MMLogger.callHandlers = lambda self, record: warned.append(record.getMessage())
    try:
        config = Config.fromfile(write_detector(export, detector))
    except DetectorError as error:
        yield {'outcome': 'refused', 'why': str(error)}
        return
    untried = next((text for text in warned if UNTRIED in text), '')
    neck = config.model.get('neck', {})
    first = neck[0] if isinstance(neck, list) else neck
    yield {
        'outcome': 'written, not tried' if untried else 'runs',
        'why': untried.partition(UNTRIED)[2].strip(),
        'in_channels': str(first.get('in_channels', '')) if first else '',
    }


def whole_steps(detector: str) -> Iterator[dict[str, Any]]:
    """What becomes of a detector that is pruned as a whole, with random weights."""
    logging.disable(logging.WARNING)
    config = Config.fromfile(CONFIGS / detector.removeprefix('mmdet::'))
    if 'model' not in config:
        return  # a part for other configs
    model = without_init_cfg(config.model.to_dict())
    if 'num_queries' in model:
        model['num_queries'] = min(model['num_queries'], QUERIES)
    if isinstance(model.get('backbone'), dict):
        model['backbone'] |= trained_whole(model['backbone']['type'])
    torch.manual_seed(0)
    fields = dict(target=0.6, tolerance=0.5, pool=dict(size=2, seed=0), target_ce=1.0)
    stp: Any = build_model(
        dict(type='mmstp.STP', model=model, input_shape=(3, SIDE, SIDE), **fields), 'mmdet'
    )
    supernet = stp.supernet
    smallest, largest = supernet.cost.macs([supernet.space.smallest, supernet.space.largest])
    yield {'whole': f'converts, {smallest / largest:.0%} to 100%', 'step': 'fails'}
    stp.init_weights()
    stp.train()
    stp.driver = stp.pool  # nothing shrinks it
    images = torch.randn(2, 3, SIDE, SIDE)
    masks = 'with_mask' in str(config.get('train_pipeline'))
    losses = stp(images, [sample(masks) for _ in images], mode='loss')
    stp.parse_losses(losses)[0].backward()
    yield {'step': 'trained', 'export': 'differs'}
    stp.eval()
    with torch.no_grad(), supernet.activate(stp.pool.best):
        own = pytree.tree_leaves(stp.task.tensors(stp.model, images))
    with torch.no_grad():
        cut = pytree.tree_leaves(stp.task.tensors(stp.export().eval(), images))
    if all(torch.equal(a, b) for a, b in zip(own, cut, strict=True)):
        yield {'export': 'equal'}


def trained_whole(backbone: str) -> dict[str, Any]:
    """Fields with which a backbone trains all of its stages and norms, as the docs ask for."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        accepted = inspect.signature(MODELS.get(backbone)).parameters
    fields = {'norm_eval': False} if 'norm_eval' in accepted else {}
    if 'frozen_stages' in accepted:
        fields['frozen_stages'] = accepted['frozen_stages'].default
    return fields


def without_init_cfg(config: Any) -> Any:
    """A model's config without weights that would be downloaded."""
    if isinstance(config, dict):
        return {k: without_init_cfg(v) for k, v in config.items() if k != 'init_cfg'}
    return [without_init_cfg(v) for v in config] if isinstance(config, list) else config


def sample(masks: bool) -> DetDataSample:
    """An image with one object."""
    shape = (SIDE, SIDE)
    found = DetDataSample(
        metainfo=dict(
            img_shape=shape, batch_input_shape=shape, pad_shape=shape, ori_shape=shape,
            scale_factor=(1.0, 1.0), img_id=0,
        )
    )  # fmt: skip
    found.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 10.0, 90.0, 90.0]]), labels=torch.tensor([0])
    )
    if masks:
        mask = np.zeros((1, *shape), np.uint8)
        mask[0, 10:90, 10:90] = 1
        found.gt_instances.masks = BitmapMasks(mask, *shape)
    return found


def as_a_whole(detector: str, seconds: float) -> str:
    """The table's words for it."""
    found = in_process(functools.partial(whole_steps, detector), seconds)
    stages = [found[name] for name in ('whole', 'step', 'export') if name in found]
    error = [one_line(found['error'])] if 'error' in found else []
    return ', '.join([*stages, *error])


def one_line(text: str) -> str:
    """What a cell of a table can hold."""
    text = re.sub(r'\s+', ' ', text).replace('|', '\\|')
    return re.sub(r'(?<![\w.])/(?:[\w.+-]+/)+', '', text)[:220]  # folders of this machine


def main() -> None:
    """Exports the network and tries the detectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', default='', help='part of the name of a config')
    parser.add_argument('--seconds', type=float, default=120.0, help='default %(default)g')
    parser.add_argument('--out', type=Path, help='a page whose table is rewritten')
    args = parser.parse_args()
    wholes, rows, counts = 0, [], dict.fromkeys(('runs', 'written, not tried', 'refused'), 0)
    with tempfile.TemporaryDirectory() as folder:
        # in a process of its own: none that computed a gradient can be forked
        exported = in_process(functools.partial(export_steps, Path(folder)), args.seconds)
        if 'error' in exported:
            raise SystemExit(exported['error'])
        for detector in detectors():
            if args.only not in detector:
                continue
            found = in_process(functools.partial(steps, detector, Path(folder)), args.seconds)
            outcome = found.get('outcome', 'refused')
            counts[outcome] += 1
            why = one_line(found.get('why') or found.get('error', ''))
            whole = as_a_whole(detector, args.seconds)
            wholes += 'equal' in whole
            rows.append([detector[7:], outcome, found.get('in_channels', ''), why, whole])
            print(*rows[-1], sep=' | ', flush=True)
    text = (
        f'{environment("mmdetection")}\n\nBackbone {exported["architecture"]}; '
        + ', '.join(f'{outcome}: {count}' for outcome, count in counts.items())
        + f'; {len(rows)} in all. As a whole {wholes} are converted, trained for a step and '
        'exported, equal to the bit.\n\n'
        + table(('config', 'backbone', "the neck's in_channels", 'why', 'whole'), rows)
    )
    print(text)
    if args.out:
        args.out.write_text(insert(args.out.read_text(), 'detectors', text))


if __name__ == '__main__':
    main()
