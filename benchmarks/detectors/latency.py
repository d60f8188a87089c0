"""How fast the detectors of ``rows.jsonl`` are, beside the dense ones: writes ``latencies.json``.

One image of 160x160, one thread, in turns: the dense part (images to the maps of the heads; of the
RPN, in two stages) in ONNX Runtime and, where it is installed, in OpenVINO, and the whole in
PyTorch, with its choice of boxes. The ONNX file is evaluated too, with what PyTorch does behind it.
The trained networks are read from the folder of the runs.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from measure import interleave, ratios
from run import INPUT_SHAPE, ROOT, ROWS, RUN, Study, quiet

from mmstp.atomic_files import write_json
from mmstp.deploy.onnx import export_onnx, run_in_onnx, session_of
from mmstp.deploy.timing import Setting
from mmstp.stp.two_stages import dense_part

LATENCIES = ROWS.with_name('latencies.json')


def functions_of(
    study: Study, method: str, budget: float
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """What is timed of a detector, and the accuracy of its ONNX file."""
    network: Any = RUN[method](study, budget).network.eval()
    image = torch.zeros(1, *INPUT_SHAPE)
    batch = next(iter(study.dataloader('val')))
    one = {name: values[:1] for name, values in batch.items()}

    def whole() -> object:
        with torch.no_grad():
            return network.test_step(one)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'dense.onnx'
        export_onnx(path, dense_part(network), image)
        run = session_of(str(path), threads=1)
        in_onnx = copy.deepcopy(network)
        run_in_onnx(in_onnx, path, INPUT_SHAPE)
        accuracy = study.evaluated(in_onnx)
    functions = {'onnx': lambda: run(image), 'whole': whole}
    if importlib.util.find_spec('openvino'):
        functions['openvino'] = Setting('openvino').runner(dense_part(network), image)
    return functions, accuracy


def main() -> None:
    """Measures a detector after the other, those of one seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/detectors')
    args = parser.parse_args()
    quiet()
    runs = [tuple(json.loads(row)['run']) for row in ROWS.read_text().splitlines()]
    found = json.loads(LATENCIES.read_text()) if LATENCIES.is_file() else {}
    for detector in dict.fromkeys(run[0] for run in runs):
        study = Study(detector, args.seed, args.work_dir.absolute(), math.inf)
        own = [run[1:3] for run in runs if (run[0], run[3]) == (detector, args.seed)]
        timed = {}
        for method, budget in own:
            functions, accuracy = functions_of(study, method, budget)
            timed |= {((method, budget), engine): run for engine, run in functions.items()}
            found[f'{detector} {method} {budget:g}'] = {
                'seed': args.seed,
                **{f'onnx_{kind}': value for kind, value in accuracy.items()},
            }
        seconds = interleave(timed, args.repeats, warmup=3)
        for (method, budget), engine in timed:
            faster = ratios(seconds[('dense', 1.0), engine], seconds[(method, budget), engine])
            entry = found[f'{detector} {method} {budget:g}']
            entry[engine] = statistics.median(faster)
            entry[f'{engine}_ms'] = 1000 * statistics.median(seconds[(method, budget), engine])
    write_json(LATENCIES, found)


if __name__ == '__main__':
    main()
