"""The demo over several seeds, beside its baselines.

What is asked: how far the subnet is from the dense network that was trained as long without STP,
and how it compares with the same compact network trained directly for as long, and with the dense
network cut to one width by L1 norm without fine-tuning.
"""

import statistics

from measure import demo_summaries, environment, parser, report, table

COLUMNS = {
    'dense': 'dense_top1',
    'subnet': 'subnet_top1',
    'the same, trained directly': 'scratch_top1',
    'dense, L1-pruned': 'l1_top1',
}


def main() -> None:
    """Runs ``tools/demo.py --baselines`` once per seed."""
    options = parser(__doc__, repeats=3)
    options.add_argument('--epochs', type=int)
    args = options.parse_args()
    epochs = ('--epochs', str(args.epochs)) if args.epochs else ()
    summaries = demo_summaries('demo.py', args, *epochs)
    rows = []
    for summary in summaries:
        rows.append(
            [summary['seed'], summary['architecture'], f'{summary["macs_ratio"]:.2%}']
            + [f'{summary[key]:.2f}' for key in COLUMNS.values()]
        )
    means = [statistics.mean(s[key] for s in summaries) for key in COLUMNS.values()]
    rows.append(['mean', '', '', *(f'**{mean:.2f}**' for mean in means)])
    report(
        args,
        environment('scikit-learn'),
        'Top-1 in percent on 445 test images (one image is 0.22), '
        f'{summaries[0]["epochs"]} epochs each.',
        table(['seed', 'architecture', 'MACs', *COLUMNS], rows),
    )


if __name__ == '__main__':
    main()
