"""Which detectors of mmdet take an exported network: ``python tools/analysis_tools/detectors.py``.

Of every folder of mmdet's configs the one with ResNet-50 and the shortest name (where there is
none, of all) is given to `mmstp.detection.write_detector` for a ResNet-50 of about 35 % of its
multiply-adds with random weights: its backbone is replaced, loaded and compared with the export,
and the detector looks at an image. Every config has a process of its own and two minutes.
"""

from __future__ import annotations

import argparse
import functools
import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmdet
from mmengine.config import Config
from mmengine.logging import MMLogger

sys.path.insert(0, str(Path(__file__).parent))

from pages import environment, insert, table
from processes import in_process

from mmstp.cli.launch import build_stp, load_config
from mmstp.deploy.detector_config import UNTRIED, write_detector
from mmstp.deploy.export import write_export
from mmstp.errors import DetectorError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
SECONDS = 120.0


def detectors() -> list[str]:
    """A config of every folder, as ``mmdet::`` names it."""
    chosen = []
    for folder in sorted(CONFIGS.iterdir()):
        files = list(folder.glob('*r50*.py')) or list(folder.glob('*.py'))
        if files and folder.name != '_base_':
            best = min(files, key=lambda file: (len(file.name), file.name))
            chosen.append(f'mmdet::{folder.name}/{best.name}')
    return chosen


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


def main() -> None:
    """Exports the network and tries the detectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', default='', help='part of the name of a config')
    parser.add_argument('--out', type=Path, help='a page whose table is rewritten')
    args = parser.parse_args()
    config = load_config(str(ROOT / 'configs/stp/r50_35pct.py'), {'model.pool.seed': 0})
    stp = build_stp(config)
    rows, counts = [], dict.fromkeys(('runs', 'written, not tried', 'refused'), 0)
    with tempfile.TemporaryDirectory() as folder:
        write_export(folder, stp.export(), config, stp, stp.pool.best)
        for detector in detectors():
            if args.only not in detector:
                continue
            found = in_process(functools.partial(steps, detector, Path(folder)), SECONDS)
            outcome = found.get('outcome', 'refused')
            counts[outcome] += 1
            why = re.sub(r'\s+', ' ', found.get('why') or found.get('error', '')).replace(
                '|', '\\|'
            )
            why = re.sub(r'(?<![\w.])/(?:[\w.+-]+/)+', '', why)  # folders of this machine
            rows.append([detector[7:], outcome, found.get('in_channels', ''), why[:220]])
            print(*rows[-1], sep=' | ', flush=True)
    text = (
        f'{environment("mmdetection")}\n\nBackbone {stp.pool.best}; '
        + ', '.join(f'{outcome}: {count}' for outcome, count in counts.items())
        + f'; {len(rows)} in all.\n\n'
        + table(('config', 'outcome', "the neck's in_channels", 'why'), rows)
    )
    print(text)
    if args.out:
        args.out.write_text(insert(args.out.read_text(), 'detectors', text))


if __name__ == '__main__':
    main()
