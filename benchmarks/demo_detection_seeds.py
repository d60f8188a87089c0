"""The detection demo over several seeds, beside the compact backbone from random weights.

What is asked: how far Mask R-CNN with the backbone of 35 % of the multiply-adds is from the one
with the dense backbone, both initialised from their classifiers of digits; what that initialisation
is good for; what is left of the dense one when it is pruned as a whole; and how latencies follow
the multiply-adds.
"""

import statistics

from measure import demo_summaries, environment, parser, report, table


def main() -> None:
    """Runs ``tools/demo_detection.py --baselines`` once per seed."""
    args = parser(__doc__, repeats=3).parse_args()
    rows, columns = [], {}
    for summary in demo_summaries('demo_detection.py', args):
        found = {
            f'{kind} AP, {name}': summary[name][part]
            for part, kind in (('bbox', 'box'), ('segm', 'mask'))
            for name in ('dense', 'compact', 'scratch', 'whole')
        }
        found |= {
            f'latency, {name}: {part}': ratio
            for name in ('compact', 'whole')
            for part, ratio in summary[name]['latency_ratios'].items()
        }
        for key, value in found.items():
            columns.setdefault(key, []).append(value)
        ratio = summary['compact']['backbone_macs'] / summary['dense']['backbone_macs']
        known = [summary['seed'], summary['architecture'], f'{ratio:.1%}']
        rows.append([*known, *map(_number, found.values())])
    means = [f'**{_number(statistics.mean(values))}**' for values in columns.values()]
    rows.append(['mean', '', '', *means])
    report(
        args,
        environment('scikit-learn', 'mmdetection', 'pycocotools'),
        'AP (IoU 0.5 to 0.95) in percent on 150 scenes, 8 epochs on 400; latencies are ratios to '
        'the dense ones, one image of 160x160 for the backbone and, in ONNX Runtime, the first '
        'stage, four for the whole detector. «scratch»: the compact backbone from random weights; '
        '«whole»: the dense detector, pruned as a whole for as many epochs again.',
        table(['seed', 'architecture', 'MACs of the backbone', *columns], rows),
    )


def _number(value: float) -> str:
    return f'{value:.2f}' if value < 2 else f'{value:.1f}'


if __name__ == '__main__':
    main()
