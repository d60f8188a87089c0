"""Shows what can be pruned: ``python tools/search_space.py configs/stp/r50_15pct.py``."""

import argparse
from typing import Any

from mmengine.config import Config

from mmstp import STP, Budget
from mmstp.cli.launch import add_config_options, is_stp, load_config
from mmstp.cli.space_report import describe_space
from mmstp.config_fields import default_of
from mmstp.errors import LaunchError
from mmstp.registry import MODELS
from mmstp.stp.algorithm import check_fields
from mmstp.stp.tasks import with_task


def main() -> None:
    """Builds the classifier and its supernet; neither data nor weights are needed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of an STP run')
    add_config_options(parser)
    args = parser.parse_args()
    config = load_config(args.config, args.cfg_options)
    check_model(config)
    model = config.model
    classifier = MODELS.build(model.model)
    supernet, _ = with_task(
        classifier, option(model, 'input_shape'), model.get('space') or {}, model.get('task')
    )
    budget = Budget.of(
        model.target, option(model, 'metric'), option(model, 'tolerance'),
        supernet.space, supernet.cost,
    )  # fmt: skip
    text, met = describe_space(supernet, budget)
    print(text)
    if not met:
        raise SystemExit(1)


def option(model: Config, name: str) -> Any:
    """An option of `STP`, or its default."""
    return model.get(name, default_of(STP, name))


def check_model(config: Config) -> None:
    """Refuses the fields that ``train.py`` would refuse, whether they matter here or not."""
    model = config.get('model')
    if not isinstance(model, dict) or not is_stp(config):
        kind = model.get('type') if isinstance(model, dict) else model
        raise LaunchError(f'model.type is {kind!r}, not mmstp.STP')
    check_fields({name: value for name, value in model.items() if name != 'type'})


if __name__ == '__main__':
    main()
