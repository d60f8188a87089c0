"""Shows what can be pruned: ``python tools/search_space.py configs/stp/r50_15pct.py``.

With ``--estimate`` also what the run would cost.
"""

import argparse

from mmstp.cli.estimate import estimate
from mmstp.cli.launch import add_config_options, load_config, tell_errors_plainly
from mmstp.cli.search_config import budgets_in, supernet_of
from mmstp.cli.space_report import describe_space
from mmstp.config_fields import positive


def main() -> None:
    """Builds the classifier and its supernet; neither data nor weights are needed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of an STP run')
    parser.add_argument(
        '--estimate', nargs='?', type=int, const=5, metavar='STEPS',
        help='try so many steps of each phase (5), on this device, and tell what the run would '
        'take in time and memory',
    )  # fmt: skip
    add_config_options(parser)
    args = parser.parse_args()
    config = load_config(args.config, args.cfg_options)
    supernet = supernet_of(config)
    text, met = describe_space(supernet, budgets_in(config, supernet))
    print(text)
    if not met:
        raise SystemExit(1)
    if args.estimate is not None:
        print('\n' + estimate(config, positive('--estimate', args.estimate)))


if __name__ == '__main__':
    tell_errors_plainly()
    main()
