"""The survivor phase: the last architecture of the pool is cut out, and trained alone.

A step then costs what the small network's does, instead of those of the main network and the
support subnet too. `begin_alone` turns a run over to it: the classifier that the run trains becomes
the subnet, with the same weights and its part of the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from mmengine.dist import broadcast
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.optim import CosineAnnealingLR, OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from ..architecture import Architecture
from ..config_fields import options_of, refuse_unknown
from ..subnets.supernet import Supernet
from .options import is_number

TEACHERS = (None, 'main')


@dataclass(frozen=True)
class SurvivorPhase:
    """How the survivor is trained.

    Args:
        lr: Its first learning rate, in multiples of the optimizer's (``initial_lr`` of each group).
            From there it falls to 0 by half a cosine, whatever the config's schedule is. Where
            there was no search, the config's schedule is the survivor's, in these multiples.
        teacher: ``'main'``: it keeps learning from the main network, as that was when the search
            ended. None: from the labels alone.

    Raises:
        ValueError: If an option is out of range.
    """

    lr: float = 1.0
    teacher: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any] | bool | None) -> SurvivorPhase | None:
        """From ``model.survivor``, if it is a dict; a `FieldError` for an unknown option."""
        if not isinstance(options, Mapping):
            return None
        refuse_unknown('model.survivor', options, options_of(cls))
        return cls(**options)

    def __post_init__(self) -> None:
        if not is_number(self.lr) or self.lr <= 0:
            raise ValueError(f'model.survivor.lr={self.lr!r}: expected a number above 0')
        if self.teacher not in TEACHERS:
            raise ValueError(f'model.survivor.teacher={self.teacher!r}: expected one of {TEACHERS}')


def begin_alone(runner: Runner, searched: bool = True) -> None:
    """Turns a run over to its survivor: model, optimizer, learning rate, log, wrapper, average.

    Args:
        runner: Of an `STP` whose pool has one architecture; it may be built for testing alone.
        searched: Whether there was a search, so that the learning rate has to begin anew.
    """
    wrapper = runner.model if is_model_wrapper(runner.model) else None
    stp: Any = runner.model if wrapper is None else wrapper.module
    stp.go_alone()
    optimizer = runner.optim_wrapper
    if isinstance(optimizer, OptimWrapper):  # not where the run only tests
        kept = hand_over(optimizer.optimizer, stp.supernet, stp.pool.best, stp.model)
        if searched:
            for group in optimizer.param_groups:
                _start_anew(group, stp.survivor.lr)
            left = runner.max_iters - runner.iter
            runner.param_schedulers = [
                CosineAnnealingLR(optimizer, T_max=left, end=left, by_epoch=False)
            ]
        else:
            for group in optimizer.param_groups:
                group['lr'] *= stp.survivor.lr
            _follow(runner.param_schedulers, kept, stp.survivor.lr)
        runner.logger.info(f'survivor: {stp.pool.best} is trained alone from here on')
    if stp.teacher is not None:
        for buffer in stp.teacher.buffers():  # every rank had norm statistics of its own
            broadcast(buffer)
    else:
        stp.supernet.model.to('meta')  # what is still asked for are shapes
    scalars = runner.message_hub.log_scalars  # the logger would go on with what is there
    for name in [name for name in scalars if name.startswith('train/loss')]:
        del scalars[name]
    if wrapper is not None:  # its buckets are of the main network's gradients
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), stp)
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            hook.before_run(runner)  # the average begins anew


def _follow(schedulers: Any, kept: Sequence[bool], lr: float) -> None:
    """Has the config's schedules go on with the groups that are left."""
    for scheduler in schedulers or []:
        values = compress(scheduler.base_values, kept)
        factor = lr if scheduler.param_name == 'lr' else 1.0
        scheduler.base_values = [factor * value for value in values]


def _start_anew(group: dict[str, Any], lr: float) -> None:
    """Learning rate and momentum are those that the schedules began with."""
    group['lr'] = group['initial_lr'] = lr * group.get('initial_lr', group['lr'])
    if 'initial_momentum' in group:
        if 'betas' in group:
            group['betas'] = (group['initial_momentum'], *group['betas'][1:])
        else:
            group['momentum'] = group['initial_momentum']


def hand_over(
    optimizer: Optimizer, supernet: Supernet, architecture: Architecture, network: nn.Module
) -> list[bool]:
    """Gives an optimizer of the main network's parameters those of a subnet that was cut out.

    Every parameter stays in its group. Of its state, what has the parameter's shape is narrowed as
    it is, numbers are kept, and anything else starts anew.

    Args:
        optimizer: Changed in place.
        supernet: The main network's.
        architecture: The subnet's.
        network: The subnet, cut out.

    Returns:
        Of each group, whether there is anything left of it; else it is gone.
    """
    own = dict(network.named_parameters(remove_duplicate=False))
    keys: dict[nn.Parameter, str] = {}
    for key, parameter in supernet.model.named_parameters(remove_duplicate=False):
        if key in own:
            keys.setdefault(parameter, key)

    def narrowed(parameter: nn.Parameter, state: Mapping[str, Any]) -> dict[str, Any]:
        key, found = keys[parameter], {}
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                found[name] = supernet.narrow(architecture, key, value).clone()
            elif not isinstance(value, Tensor) or value.dim() == 0:
                found[name] = value
        return found if len(found) == len(state) else {}

    for group in optimizer.param_groups:
        handed = []
        for parameter in group['params']:
            state = optimizer.state.pop(parameter, {})
            if parameter in keys:  # else it went with its block
                handed.append(own[keys[parameter]])
                if state:
                    optimizer.state[handed[-1]] = narrowed(parameter, state)
        group['params'] = handed
    kept = [bool(group['params']) for group in optimizer.param_groups]
    optimizer.param_groups[:] = compress(optimizer.param_groups, kept)
    return kept
