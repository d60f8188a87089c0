"""Shows what can be pruned: ``python tools/search_space.py configs/stp/r50_15pct.py``."""

import argparse

from mmstp.cli.launch import add_config_options, load_config
from mmstp.cli.search_config import budget_of, supernet_of
from mmstp.cli.space_report import describe_space


def main() -> None:
    """Builds the classifier and its supernet; neither data nor weights are needed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of an STP run')
    add_config_options(parser)
    args = parser.parse_args()
    config = load_config(args.config, args.cfg_options)
    supernet = supernet_of(config)
    text, met = describe_space(supernet, budget_of(config, supernet))
    print(text)
    if not met:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
