"""When the pool shrinks, what is written of it, and its place in checkpoints."""

from __future__ import annotations

from dataclasses import astuple
from math import cos, pi
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from ...atomic_files import write_json
from ...config_fields import at_least, options_of, positive, refuse_unknown
from ...errors import CheckpointError, OptionError
from ...registry import HOOKS
from ..algorithm import STP
from ..mid_epoch import agree, go_on_summing, summed_gradients
from ..of_runner import stp_of
from ..options import is_number, not_finite
from ..passes import Apart, scale_of
from ..pool import ShrinkSchedule
from ..refused import refuse_fields, refuse_unmeasured
from ..same_on_ranks import refuse_differing
from ..screening import begin_search
from ..search_state import pools_state, read_search
from ..span import search_span
from ..survivor import begin_alone, order_anew, warn_of_another_length
from ..tasks import warn_of_unlearned
from .checkpoints import saves
from .pool_log import log_pool, report, spread
from .seeding import refuse_unplaced

STATE = 'mmstp'  # where the search's state lies in a checkpoint
GRADIENTS = 'mmstp_gradients'  # where those lie that no step has used yet
BEST = 'best_architecture'  # the file's name, before the suffix of a budget


@HOOKS.register_module()
class PoolHook(Hook):
    """Shrinks the pool, logs it, keeps it in the checkpoints and writes the best architecture out.

    Of several budgets each has a pool; all shrink in the same iterations.

    With ``model.survivor`` it then turns the run over to the survivors.

    Args:
        interval: Iterations between two drops (``k`` of Alg. 1); one epoch by default.
        begin: The part of the training's iterations in which the main network is trained alone,
            before candidates are looked at. Its channels are ordered by importance then. None, as
            for ``end``, ``visits`` and ``screen``: the preset's (`STP.preset`).
        end: The part after which a single architecture is left; where the search begins with it,
            one is chosen without a search. With ``begin`` and a survivor phase the schedule's
            learning rate falls to 0 by then, times half a cosine.
        visits: How often each of the pool is to be visited until then, on average: a pool that is
            too large for that is cut to as many at the start.
        screen: Batches of training images on which candidates get a first score, before any is
            trained, so that the best stay when the pool is cut; for main networks that are trained
            already.
        patience: How many batches in a row whose loss is not finite, or steps whose gradients are
            not, end the run. Until then they are left out, and counted as ``bad_batches``.

    Raises:
        FieldError: If an option does not exist.
        OptionError: If an argument is out of range.
    """

    # before `RuntimeInfoHook`, which notes the learning rate, and `EMAHook`, which averages the
    # network that a checkpoint may have put there
    priority = 'HIGHEST'

    def __init__(
        self,
        interval: int | None = None,
        begin: float | None = None,
        end: float | None = None,
        visits: int | None = None,
        screen: int | None = None,
        patience: int = 10,
        **unknown: Any,
    ) -> None:
        refuse_unknown('custom_hooks (mmstp.PoolHook)', unknown, options_of(PoolHook))
        for name, part in (('begin', begin), ('end', end)):
            if part is not None and (not is_number(part) or not 0 <= part <= 1):
                raise OptionError(f'PoolHook.{name}={part!r}: expected a fraction in [0, 1]')
        self.interval = None if interval is None else positive('PoolHook.interval', interval)
        self.visits = None if visits is None else positive('PoolHook.visits', visits)
        self.screen = None if screen is None else at_least(0, 'PoolHook.screen', screen)
        self.patience = positive('PoolHook.patience', patience)
        self.begin, self.end = begin, end
        self._sizes: dict[str, int] = {}  # of the pools when the search began
        self._schedules: dict[str, ShrinkSchedule] = {}  # by iterations of the search
        self._spread: dict[str, float] = {}
        self._begin = self._end = 0  # iterations before the search, and until each has one left
        self._rates: list[float] = []  # the schedules' learning rates, while a step has lower ones
        self._gradients: dict[str, Any] = {}  # of the checkpoint that was loaded

    def before_train(self, runner: Runner) -> None:
        stp = stp_of(runner)
        stp.supernet.check_intact()
        if sum(isinstance(hook, PoolHook) for hook in runner.hooks) > 1:
            raise RuntimeError('there are two PoolHooks in custom_hooks: the pool has one driver')
        refuse_fields(runner.cfg)
        prefixes = ['subnet', *(f'subnet{stp.pools.suffix(label)}' for label in stp.pools)]
        refuse_unmeasured(runner.hooks, prefixes)
        refuse_unplaced(runner)
        warn_of_unlearned(stp.task, stp.target_ce)
        if runner.iter:
            go_on_summing(runner, stp, self._gradients)
        stp.driver, self._gradients = self, {}
        if isinstance(runner.optim_wrapper, OptimWrapper):
            stp.bad_batches.patience = self.patience
            stp.bad_batches.guard(runner.optim_wrapper, stp)
            if stp.passes is Apart:
                stp.loss_scale = scale_of(runner.optim_wrapper)
        self._begin, self._end = self.search_span(stp, runner.max_iters)
        if self._sizes and not stp.alone and runner.iter < self._begin:
            raise CheckpointError(
                'the search of the checkpoint has begun, and the run goes on at iteration '
                f'{runner.iter}, before its PoolHook.begin (iteration {self._begin}): expected '
                'begin and length of the run that wrote it'
            )
        stp.searching = bool(self._sizes) or not self._begin
        refuse_differing(stp.pools.fields())
        if stp.alone:
            warn_of_another_length(runner, searched=self._end > 0)
        elif stp.searching:
            self._search(runner, stp)
        else:
            runner.logger.info(f'the main network is trained alone for {self._begin} iterations')

    def _search(self, runner: Runner, stp: STP) -> None:
        """Begins the search, or goes on with it."""
        if not self._sizes:
            if self._begin:
                order_anew(runner, stp)
            visits, screen = self._option(stp, 'visits'), self._option(stp, 'screen')
            begin_search(runner, stp, self._end - self._begin, visits, screen)
            self._sizes = {label: len(pool) for label, pool in stp.pools.items()}
            stp.searching = True
        interval = self.interval or min(len(runner.train_dataloader), runner.max_iters)
        self._schedules = {
            label: ShrinkSchedule(size, interval, self._end - self._begin)
            for label, size in self._sizes.items()
        }
        schedules = [astuple(schedule) for schedule in self._schedules.values()]
        refuse_differing({**stp.pools.fields(), 'schedule': schedules})

    def search_span(self, stp: STP, iterations: int) -> tuple[int, int]:
        """After how many of a training's iterations the search begins and ends: `search_span`."""
        begin, end = self._option(stp, 'begin'), self._option(stp, 'end')
        return search_span(begin, end, iterations, stp.survivor is not None and not stp.alone)

    def _option(self, stp: STP, name: str) -> Any:
        """An argument, or the preset's where it was left out."""
        given = getattr(self, name)
        return getattr(stp.preset, name) if given is None else given

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        stp = stp_of(runner)
        self._go_on(runner, stp)
        if self._begin and stp.survivor is not None and not stp.alone:
            # the main network's ends where a survivor's begins; schedules do not see it
            groups = runner.optim_wrapper.param_groups
            self._rates = [group['lr'] for group in groups]
            for group in groups:
                group['lr'] *= (1 + cos(pi * min(1, runner.iter / self._end))) / 2

    def _go_on(self, runner: Runner, stp: STP) -> None:
        """Begins the search, and the survivor phase, where it is time."""
        if stp.alone or runner.iter < self._begin:
            return
        if stp.searching and (stp.survivor is None or runner.iter < self._end):
            return
        if not runner.optim_wrapper.should_update():
            return  # gradients are being accumulated, of the main network
        if not stp.searching:
            self._search(runner, stp)
        if stp.survivor is None or runner.iter < self._end:
            return
        for pool in stp.pools.values():
            pool.shrink(len(pool) - 1)  # where a resumed run ends its search earlier
        self._schedules = {}
        begin_alone(runner, searched=self._option(stp, 'end') > 0)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        stp = stp_of(runner)
        if self._rates:
            for group, rate in zip(runner.optim_wrapper.param_groups, self._rates, strict=True):
                group['lr'] = rate
            self._rates = []
        if any(saves(hook, runner) for hook in runner.hooks):
            _refuse_weights(stp)
            agree(runner, stp)
        searched = runner.iter + 1 - self._begin
        if any(schedule.due(searched) for schedule in self._schedules.values()):
            refuse_differing(stp.pools.fields())
        if stp.bad_batches.total:
            runner.message_hub.update_scalar('train/bad_batches', stp.bad_batches.total)
        if stp.bad_batches.in_a_row and outputs:
            outputs.clear()  # else the zeros that stand for its losses would be averaged in the log
        for label, schedule in self._schedules.items():
            pool = stp.pools[label]
            drops = schedule.drops(searched, len(pool))
            if drops:
                pool.shrink(drops)
                report(runner, stp, label, runner.iter + 1)
            if drops or label not in self._spread:
                self._spread[label] = spread(pool.scores, stp.supernet.space.largest)
            log_pool(runner, stp, label, self._spread[label])

    def after_train_epoch(self, runner: Runner) -> None:
        _refuse_weights(stp_of(runner))  # before `CheckpointHook` takes the oldest checkpoint away
        agree(runner, stp_of(runner))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        stp = stp_of(runner)
        _refuse_weights(stp)
        if 'optimizer' in checkpoint:  # the run can go on from it
            gradients = summed_gradients(runner, stp)
            checkpoint[GRADIENTS] = {key: value.cpu() for key, value in gradients.items()}
        checkpoint[STATE] = {
            **pools_state(stp, self._sizes),
            'begun': bool(self._sizes),
            'alone': stp.alone,
            'teacher': stp.teacher is not None,
            'bad_batches': stp.bad_batches.state_dict(),
        }
        for label, pool in stp.pools.items():
            found = {
                **stp.supernet.describe(pool.best),
                'iteration': runner.iter,
                'pool_size': len(pool),
                'score': pool.scores[pool.best],
            }
            write_json(Path(runner.work_dir) / f'{BEST}{stp.pools.suffix(label)}.json', found)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        stp = stp_of(runner)
        if STATE not in checkpoint:
            raise CheckpointError(
                'the checkpoint holds no state of an STP search: it was not written by a run with '
                'mmstp.PoolHook. A checkpoint of the dense classifier goes into model.pretrained'
            )
        if bad := not_finite(stp, checkpoint.get('state_dict', {})):
            raise CheckpointError(f'the checkpoint is damaged: {bad[0]} holds NaN or inf')
        sizes, alone = read_search(stp, checkpoint[STATE])
        self._sizes = sizes if checkpoint[STATE].get('begun', True) else {}
        self._gradients = checkpoint.get(GRADIENTS, {})
        if 'bad_batches' in checkpoint[STATE]:
            stp.bad_batches.load_state_dict(checkpoint[STATE]['bad_batches'])
        if alone and not stp.alone:
            begin_alone(runner, searched=self._option(stp, 'end') > 0)

    def after_train(self, runner: Runner) -> None:
        stp_of(runner).driver = None
        pools = stp_of(runner).pools
        if not stp_of(runner).searching:
            runner.logger.warning(
                'no candidate was looked at: from PoolHook.begin on no step of the optimizer began '
                '(optim_wrapper.accumulative_counts)'
            )
        for label in pools:
            report(runner, stp_of(runner), label, runner.iter)
            budget = f' --budget {label}' if len(pools) > 1 else ''
            runner.logger.info(
                f'cut it out with: python tools/export.py CONFIG CHECKPOINT{budget} --out DIR; '
                f'both lie in {runner.work_dir}'
            )


def _refuse_weights(stp: STP) -> None:
    """Raises where weights are not finite: a checkpoint of them would be taken for a good one."""
    if bad := not_finite(stp.model):
        raise CheckpointError(
            f'{bad[0]} holds numbers that are not finite: nothing is saved, and the checkpoint '
            'before stays the last. Training diverged in the step before, or an image or a label '
            'holds such numbers'
        )
