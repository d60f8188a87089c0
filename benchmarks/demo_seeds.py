"""The demo over several seeds, beside its baselines.

What is asked: how far the subnet and the main network are from the dense network that was trained
as long without STP; and how the subnet compares with the same compact network trained directly for
as long, and with the dense network cut to one width by L1 norm without fine-tuning.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import environment, parser, report, table

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    'dense': 'dense_top1',
    'main network': 'main_top1',
    'subnet': 'subnet_top1',
    'the same, trained directly': 'scratch_top1',
    'dense, L1-pruned': 'l1_top1',
}


def main() -> None:
    """Runs ``tools/demo.py --baselines`` once per seed."""
    options = parser(__doc__, repeats=3)
    options.add_argument('--epochs', type=int)
    args = options.parse_args()
    summaries = []
    for seed in range(args.seed, args.seed + args.repeats):
        with tempfile.TemporaryDirectory() as work_dir:
            command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools/demo.py'), '--baselines',
                       '--seed', str(seed), '--work-dir', work_dir]  # fmt: skip
            if args.epochs:
                command += ['--epochs', str(args.epochs)]
            subprocess.run(command, check=True)
            summaries.append(json.loads((Path(work_dir) / 'summary.json').read_text()))
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
