"""The detection demo over several seeds, beside the compact backbone from random weights.

What is asked: how far Mask R-CNN with the backbone of 35 % of the multiply-adds is from the one
with the dense backbone, both initialised from their classifiers of digits; what that initialisation
is good for; and how the latency of backbone and detector follows the multiply-adds.
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
            for name in ('dense', 'compact', 'scratch')
        }
        found |= {f'latency, {part}': summary[f'{part}_latency_ratio']
                  for part in ('backbone', 'detector')}  # fmt: skip
        for key, value in found.items():
            columns.setdefault(key, []).append(value)
        known = [summary['seed'], summary['architecture'], f'{summary["backbone_macs_ratio"]:.1%}']
        rows.append([*known, *map(_number, found.values())])
    means = [f'**{_number(statistics.mean(values))}**' for values in columns.values()]
    rows.append(['mean', '', '', *means])
    report(
        args,
        environment('scikit-learn', 'mmdetection', 'pycocotools'),
        'AP (IoU 0.5 to 0.95) in percent on 150 scenes, 8 epochs on 400; latencies are ratios to '
        'the dense ones, one image of 160x160 for the backbone, four for the detector. «scratch»: '
        'the compact backbone from random weights.',
        table(['seed', 'architecture', 'MACs of the backbone', *columns], rows),
    )


def _number(value: float) -> str:
    return f'{value:.2f}' if value < 2 else f'{value:.1f}'


if __name__ == '__main__':
    main()
