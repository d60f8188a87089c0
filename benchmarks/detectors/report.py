"""The table of the whole detectors: ``python benchmarks/detectors/report.py``.

Made of ``rows.jsonl`` and ``latencies.json``, into docs/detection.md.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT / 'tools/analysis_tools')]

from pages import insert, table  # noqa: E402

NAMES = {'mask_rcnn': 'Mask R-CNN', 'retinanet': 'RetinaNet'}
METHODS = {
    'dense': 'dense, trained on',
    'stp': 'STP',
    'uniform': 'cut uniformly by norms, trained on',
    'torch-pruning': 'cut by Torch-Pruning, trained on',
    'screened': 'cut to what keeps most, trained on',
    'scratch': 'uniform, from random weights',
    'backbone': 'STP of the backbone alone',
}


def lines(rows: list[dict[str, Any]], latencies: dict[str, Any]) -> list[list[str]]:
    """A line for every detector, method and budget: means over the seeds."""
    groups: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = {}
    for row in rows:
        detector, method, budget, seed = row['run']
        groups.setdefault((detector, method, budget), {})[seed] = row
    found = []
    order = list(METHODS)
    for detector, method, budget in sorted(
        groups, key=lambda key: (key[0], -key[2], order.index(key[1]))
    ):
        own, dense = groups[detector, method, budget], groups.get((detector, 'dense', 1.0), {})
        speed = latencies.get(f'{detector} {method} {budget:g}', {})
        found.append(
            [
                NAMES[detector],
                METHODS[method],
                f'{statistics.mean(row["macs_ratio"] for row in own.values()):.0%}',
                _accuracy(own, dense if method != 'dense' else {}, 'bbox'),
                _accuracy(own, dense if method != 'dense' else {}, 'segm'),
                f'{statistics.mean(row["epochs"] for row in own.values()):.0f}',
                *(
                    f'{speed[engine]:.2f}' if engine in speed else ''
                    for engine in ('onnx', 'openvino', 'whole')
                ),
                _in_onnx(own, speed),
                f'{len(own)}',
            ]
        )
    return found


def _accuracy(own: dict[int, Any], dense: dict[int, Any], kind: str) -> str:
    """The mean, and the paired difference to the dense one with its standard error."""
    values = [row[kind] for row in own.values() if kind in row]
    if not values:
        return ''
    text = f'{statistics.mean(values):.1f}'
    differences = [own[seed][kind] - dense[seed][kind] for seed in own if seed in dense]
    if differences:
        text += f' ({statistics.mean(differences):+.1f}'
        if len(differences) > 1:
            error = statistics.stdev(differences) / len(differences) ** 0.5
            text += f' ± {error:.1f}'
        text += ')'
    return text


def _in_onnx(own: dict[int, Any], speed: dict[str, Any]) -> str:
    """The largest difference of the ONNX file's accuracy, of the seed that was timed."""
    seed = speed.get('seed')
    kinds = [kind for kind in ('bbox', 'segm') if f'onnx_{kind}' in speed and seed in own]
    differences = [abs(speed[f'onnx_{kind}'] - own[seed][kind]) for kind in kinds]
    return f'{max(differences):.1f}' if differences else ''


def main() -> None:
    """Writes the table between its marks."""
    rows = [json.loads(row) for row in (HERE / 'rows.jsonl').read_text().splitlines()]
    path = HERE / 'latencies.json'
    latencies = json.loads(path.read_text()) if path.is_file() else {}
    head = ['', 'method', 'MACs', 'box AP', 'mask AP', 'epochs', 'ONNX Runtime',
            'OpenVINO', 'whole', 'AP by ONNX', 'seeds']  # fmt: skip
    page = ROOT / 'docs/detection.md'
    text = table(head, lines(rows, latencies))
    page.write_text(insert(page.read_text(), 'whole_detectors', text))


if __name__ == '__main__':
    main()
