"""The survivor phase: the last architecture of each pool is cut out, and trained alone.

A step then costs what the small network's does, instead of those of the main network and the
support subnet too. `begin_alone` turns a run over to it: the classifier that the run trains becomes
the subnet, with the same weights and its part of the optimizer's state.

The survivors of several budgets are trained together: every batch is of all of them, and each takes
the step that it would take if it were the only one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from mmengine.dist import broadcast
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.optim import CosineAnnealingLR, OptimWrapper, ReduceOnPlateauParamScheduler
from mmengine.runner import Runner
from torch import Size, Tensor, nn
from torch.optim import Optimizer

from ..architecture import Architecture
from ..config_fields import options_of, refuse_unknown
from ..errors import OptionError
from ..subnets.norm_statistics import norms_with_statistics
from ..subnets.supernet import Supernet
from .options import is_number
from .pools import Pools

TEACHERS = (None, 'main')
# of a group of parameters: the learning rate, and what MMEngine's schedules begin or go between
RATES = {'lr', 'initial_lr', 'max_lr', 'min_lr'}


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
        OptionError: If an option is out of range.
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
            raise OptionError(f'model.survivor.lr={self.lr!r}: expected a number above 0')
        if self.teacher not in TEACHERS:
            raise OptionError(
                f'model.survivor.teacher={self.teacher!r}: expected one of {TEACHERS}'
            )


def cut_survivors(supernet: Supernet, pools: Pools) -> dict[str, nn.Module]:
    """Cuts out what is left of each pool, by the label of its budget.

    Args:
        supernet: The main network's.
        pools: With one architecture each.
    """
    assert all(len(pool) == 1 for pool in pools.values())
    found = {label: supernet.export(pool.best) for label, pool in pools.items()}
    for network in found.values():
        for _, norm in norms_with_statistics(network):
            if norm.momentum is None and norm.training:  # else the main network's batches count on
                norm.reset_running_stats()
    return found


def begin_alone(runner: Runner, searched: bool = True) -> None:
    """Turns a run over to its survivors: model, optimizer, learning rate, log, wrapper, average.

    Args:
        runner: Of an `STP` whose pools have one architecture; it may be built for testing alone.
        searched: Whether there was a search, so that the learning rate has to begin anew.
    """
    wrapper = runner.model if is_model_wrapper(runner.model) else None
    stp: Any = runner.model if wrapper is None else wrapper.module
    stp.go_alone()
    networks = {stp.pools[label].best: network for label, network in stp.survivors.items()}
    optimizer = runner.optim_wrapper
    if isinstance(optimizer, OptimWrapper):  # not where the run only tests
        kept = hand_over(optimizer.optimizer, stp.supernet, networks)
        if optimizer.clip_grad_kwargs and len(networks) > 1:
            optimizer.clip_func = each_clipped(optimizer.clip_func, list(networks.values()))
        if searched:
            for group in optimizer.param_groups:
                _start_anew(group, stp.survivor.lr)
            left = runner.max_iters - runner.iter
            runner.param_schedulers = [
                CosineAnnealingLR(optimizer, T_max=left, end=left, by_epoch=False)
            ]
        else:
            for group in optimizer.param_groups:
                for key in RATES & group.keys():
                    group[key] *= stp.survivor.lr
            _follow(runner.param_schedulers, kept, stp.survivor.lr)
        for architecture in networks:
            runner.logger.info(f'survivor: {architecture} is trained alone from here on')
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
    _average_anew(runner)


def warn_of_another_length(runner: Runner, searched: bool) -> None:
    """Says so where a run goes on whose survivors' learning rate falls over another length.

    As MMEngine does, a run goes on with the schedules of the checkpoint. Without a search they are
    the config's.
    """
    for scheduler in runner.param_schedulers if searched else []:
        last = runner.iter + scheduler.end - scheduler._global_step
        if last != runner.max_iters:
            runner.logger.warning(
                f'train_cfg: the training ends at iteration {runner.max_iters}, but the '
                f"survivor's learning rate falls to 0 until {last}, as it did in the run that "
                'began its phase. It is not fitted to another length'
            )


def order_anew(runner: Runner, stp: Any) -> None:
    """Sorts the main network's channels by importance in the middle of its training.

    What belongs to their old places begins anew: the optimizer's state, and averages.
    """
    stp.supernet.order_channels()
    runner.optim_wrapper.optimizer.state.clear()
    _average_anew(runner)


def _average_anew(runner: Runner) -> None:
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            hook.before_run(runner)


def _follow(schedulers: Any, kept: Sequence[bool], lr: float) -> None:
    """Has the config's schedules go on with the groups that are left."""
    for scheduler in schedulers or []:
        if isinstance(scheduler, ReduceOnPlateauParamScheduler):
            scheduler.min_values = [*compress(scheduler.min_values, kept)]
            continue
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


def each_clipped(clip: Callable[..., Any], networks: Sequence[nn.Module]) -> Callable[..., Any]:
    """Clips the gradients of each network by those of its own: others make no difference.

    Args:
        clip: What clips gradients of some parameters, and may return their norm.
        networks: Without common parameters.

    Returns:
        What clips those of all, and returns the largest norm, if there are any.
    """
    owners = {
        parameter: place for place, own in enumerate(networks) for parameter in own.parameters()
    }

    def clip_each(parameters: Sequence[nn.Parameter], **options: Any) -> Any:
        apart: dict[int, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            apart[owners[parameter]].append(parameter)
        norms = [clip(own, **options) for own in apart.values()]
        return None if norms[0] is None else max(norms)

    return clip_each


def hand_over(
    optimizer: Optimizer, supernet: Supernet, networks: Mapping[Architecture, nn.Module]
) -> list[bool]:
    """Gives an optimizer of the main network's parameters those of subnets that were cut out.

    Every parameter stays in its group. Of its state, what has the parameter's shape is narrowed as
    it is, numbers are kept, and anything else starts anew.

    Args:
        optimizer: Changed in place.
        supernet: The main network's.
        networks: The subnets, cut out.

    Returns:
        Of each group, whether there is anything left of it; else it is gone.
    """
    heirs: dict[nn.Parameter, list[tuple[Architecture, str, nn.Parameter]]] = defaultdict(list)
    for architecture, network in networks.items():
        own = dict(network.named_parameters(remove_duplicate=False))
        keys: dict[nn.Parameter, str] = {}
        for key, parameter in supernet.model.named_parameters(remove_duplicate=False):
            if key in own:
                keys.setdefault(parameter, key)
        for parameter, key in keys.items():
            heirs[parameter].append((architecture, key, own[key]))

    def narrowed(
        architecture: Architecture, key: str, shape: Size, state: Mapping[str, Any]
    ) -> dict[str, Any]:
        found = {}
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == shape:
                found[name] = supernet.narrow(architecture, key, value).clone()
            elif isinstance(value, Tensor) and value.dim() == 0:
                found[name] = value.clone()  # it is counted up in place
            elif not isinstance(value, Tensor):
                found[name] = value
        return found if len(found) == len(state) else {}

    for group in optimizer.param_groups:
        handed = []
        for parameter in group['params']:
            state = optimizer.state.pop(parameter, {})
            for architecture, key, heir in heirs[parameter]:  # none where it went with its block
                handed.append(heir)
                if state:
                    optimizer.state[heir] = narrowed(architecture, key, parameter.shape, state)
        group['params'] = handed
    kept = [bool(group['params']) for group in optimizer.param_groups]
    optimizer.param_groups[:] = compress(optimizer.param_groups, kept)
    return kept
