"""Shows what can be pruned: ``python tools/search_space.py configs/stp/r50_15pct.py``."""

import argparse

import torch

from mmstp import SearchSpace, Supernet
from mmstp.cli.launch import add_config_options, is_stp, load_config
from mmstp.cli.space_report import describe_space
from mmstp.config_fields import options_of, refuse_unknown
from mmstp.errors import LaunchError
from mmstp.registry import MODELS
from mmstp.search.budget import Budget


def main() -> None:
    """Builds the classifier and its supernet; neither data nor weights are needed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of an STP run')
    add_config_options(parser)
    args = parser.parse_args()
    config = load_config(args.config, args.cfg_options)
    model = config.model
    if not is_stp(config):
        raise LaunchError(f'model.type is {model.get("type")!r}, not mmstp.STP')
    classifier = MODELS.build(model.model)
    inputs = torch.zeros(1, *model.get('input_shape', (3, 224, 224)))
    space = model.get('space', {})
    refuse_unknown('model.space', space, options_of(SearchSpace))
    supernet = Supernet(classifier, inputs, **space)
    budget = Budget.of(
        model.target, model.get('metric', 'macs'), model.get('tolerance', 0.02),
        supernet.space, supernet.cost,
    )  # fmt: skip
    text, met = describe_space(supernet, budget)
    print(text)
    if not met:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
