"""The search space and the budget of a config, without data or weights."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

from ..config_fields import default_of
from ..errors import LaunchError
from ..registry import MODELS
from ..search.budget import Budget
from ..search.budgets import budgets_of
from ..stp.algorithm import STP, check_fields
from ..stp.latency import use_latency
from ..stp.norm_modes import norms_behind_choices, refuse_eval_norms
from ..stp.tasks import with_task
from ..subnets.supernet import Supernet
from .launch import is_stp


def supernet_of(config: Config) -> Supernet:
    """The supernet of the config of an STP run.

    Raises:
        LaunchError: If the config is none.
        FieldError: For fields that ``train.py`` would refuse, whether they matter here or not.
        ModelError: If the model gives nothing that its task could compare.
        OptionError: If norms stay in eval mode in training.
    """
    model = config.get('model')
    if not isinstance(model, dict) or not is_stp(config):
        kind = model.get('type') if isinstance(model, dict) else model
        raise LaunchError(f'model.type is {kind!r}, not mmstp.STP')
    check_fields({name: value for name, value in model.items() if name != 'type'})
    classifier = MODELS.build(config.model.model)
    shape, space = _option(config, 'input_shape'), config.model.get('space') or {}
    supernet, task = with_task(classifier, shape, space, config.model.get('task'))
    task(supernet, _option(config, 'normalize'))
    classifier.train()
    refuse_eval_norms(norms_behind_choices(supernet), classifier)
    classifier.eval()
    return supernet


def budgets_in(config: Config, supernet: Supernet) -> dict[str, Budget]:
    """The budgets of the config by label; the supernet takes over the latency that it names."""
    use_latency(supernet, _option(config, 'latency'))
    target, metric, tolerance = (
        _option(config, name) for name in ('target', 'metric', 'tolerance')
    )
    return budgets_of(target, metric, tolerance, supernet.space, supernet.cost)


def _option(config: Config, name: str) -> Any:
    """An option of `STP`, or its default."""
    return config.model.get(name, default_of(STP, name))
