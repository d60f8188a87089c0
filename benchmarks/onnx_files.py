"""ONNX files of compact classifiers and backbones: their size, and that they compute the same.

ResNet-50 for ImageNet at the paper's budgets, random weights; the backbone with all four outputs,
as detectors have it.
"""

import tempfile
from pathlib import Path

import torch
from measure import environment, parser, prepare, report, table
from networks import classifier, members

from mmstp import Supernet
from mmstp.deploy.onnx import export_onnx
from mmstp.registry import build_model

SIDE = 224
TARGETS = (1.0, 0.55, 0.35, 0.15)


def main() -> None:
    """Exports the dense network and one subnet per budget."""
    args = parser(__doc__, repeats=1).parse_args()
    prepare(args)
    dense = classifier()
    images = torch.zeros(1, 3, SIDE, SIDE)
    supernet = Supernet(dense, images)
    config = dict(type='mmpretrain.ResNet', depth=50, out_indices=(0, 1, 2, 3))
    rows, sizes = [], {}
    for target in TARGETS:
        architecture = supernet.space.largest
        if target < 1:
            (architecture,) = members(supernet, target, 1, args.seed)
        network = supernet.export(architecture)
        plan = supernet.compact_spec(architecture).within('backbone').to_dict()
        backbone = build_model(dict(type='mmstp.CompactBackbone', backbone=config, plan=plan))
        backbone.load_state_dict(network.backbone.state_dict())
        ratio = (
            supernet.cost.macs([architecture])[0] / supernet.cost.macs([supernet.space.largest])[0]
        )
        row = [str(architecture), f'{ratio:.1%}']
        for name, module in (('classifier', network), ('backbone', backbone)):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / 'network.onnx'
                difference = export_onnx(path, module, images).difference
                size = path.stat().st_size / 2**20
            sizes.setdefault(name, size)
            row += [f'{size:.1f} MiB ({size / sizes[name]:.0%})', f'{difference:.0e}']
        rows.append(row)
    report(
        args,
        environment('mmpretrain', 'onnx', 'onnxruntime'),
        f'ResNet-50, one image of {SIDE} pixels, random weights; the difference is the largest, '
        'relative to the largest output, between ONNX Runtime and PyTorch on a random image.',
        table(('architecture', 'MACs', 'classifier', 'difference', 'backbone', 'difference'), rows),
    )


if __name__ == '__main__':
    main()
