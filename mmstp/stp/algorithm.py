"""Stimulative-training pruning (STP, Algorithm 1) as an MMEngine model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import get_world_size
from mmengine.logging import MessageHub, MMLogger
from torch import Tensor, nn

from ..architecture import Architecture
from ..checkpoints import require_fit
from ..config_fields import default_of, options_of, positive, refuse_unknown
from ..errors import ArchitectureError
from ..registry import MODELS
from ..search.budget import ENUMERABLE, Budget
from ..search.budgets import Target, budgets_of, rows_by_budget
from ..search.space import SearchSpace
from .bad_batches import BadBatches
from .latency import use_latency
from .norm_modes import norms_behind_choices, refuse_eval_norms, refuse_synchronised
from .options import check_options, check_ranges
from .passes import Scale, as_it_is, passes_of
from .places import shared_seed
from .pool import ArchitecturePool
from .pools import Pools
from .presets import preset_of
from .pretrained import load_pretrained
from .several import Several
from .step import search_losses, survivor_losses
from .survivor import SurvivorPhase, cut_survivors
from .tasks import with_task
from .wrapper import Wrapper, to_wrap


@MODELS.register_module()
class STP(Wrapper):
    """Trains a network as the main network, with a target and a support subnet inside it.

    One step is three passes over the same weights and one backward pass (Alg. 1)::

        loss = CE(main) + beta1 * KL(main || target) + beta2 * KL(main || support)

    The target subnet comes from a pool of architectures that all meet the budget, the support
    subnet is a random enlargement of it. `PoolHook` shrinks the pool until one is left.

    Args:
        model: A classifier of mmpretrain or a detector of mmdet, as a config or built.
        target: The budget: a fraction of the dense network's cost, or a number above 1. Required.
            Several limits by metric, ``dict(macs=0.35, params=0.4)``: see `mmstp.Budget`. A list
            of such: several budgets, each with a pool of its own (`Pools`), which take turns.
        metric: What a single one counts: ``'macs'``, ``'params'``, ``'activations'`` or
            ``'latency'``.
        latency: The file with the latency of the space, from ``tools/latency_table.py``.
        tolerance: Deviation accepted, relative to the target.
        input_shape: Shape of one image (channels, height, width), for the trace and the costs.
        preset: A name in `mmstp.stp.presets.PRESETS`, whose values stand for what is left out.
        task: How networks are compared, a name in `mmstp.registry.TASKS`; by default that of the
            model: ``'mmstp.Classification'`` or ``'mmstp.Detection'``.
        space: Options of `mmstp.SearchSpace`: ``widths``, ``divisor``, ``depths``, ``stages``,
            ``fix``, ``stem``.
        pool: ``size`` (default 1000), ``sampling``, ``alpha`` and ``per_rank`` of
            `mmstp.ArchitecturePool`, and ``seed`` (default: from the run's seed).
        normalize: How logits are normalised in the distillation, see `normalized_kl`. Classifiers
            of several labels distil label by label (`label_kl`), without it.
        beta1: Weight of the target subnet's distillation (Eq. 4).
        beta2: Weight of the support subnet's distillation (Eq. 7); 0 leaves its pass out.
        target_ce: Weight of the target subnet's own loss, a classifier's cross entropy; the paper
            has none (0). None, as for the next two: the preset's.
        warmup: Fraction of the training over which beta1 and beta2 rise linearly from 0.
        survivor: How the last one is trained, options of `SurvivorPhase` (``{}``: its defaults):
            cut out of the main network in the same run, and alone from then on; of several budgets
            each has one. False: as in the paper, where the main network is trained to the end.
        passes: ``'together'``: one backward pass of the sum; ``'apart'``: one behind each forward
            pass, which needs the memory of one.
        pretrained: A checkpoint (file or address) of the dense network to start from. The
            channels of every group are then ordered by importance, so that the first are the ones
            worth keeping.
        data_preprocessor: The model's, where its config names none.
        init_cfg: Of `mmengine.model.BaseModule`.

    Raises:
        FieldError: If an option of ``space`` or ``pool`` does not exist, or is of another kind.
        OptionError: If an option is out of range, norms stay in eval mode in training, or each rank
            would train its own subnet and norms are synchronised.
        ModelError: If the model gives nothing that its task could compare.
        BudgetError: If no architecture meets the budget, or one meets two.
        SpaceError: If nothing in the model can be pruned.
    """

    def __init__(
        self,
        model: Mapping[str, Any] | nn.Module,
        target: Target | None = None,
        metric: str = 'macs',
        latency: str | None = None,
        tolerance: float = 0.02,
        input_shape: Sequence[int] = (3, 224, 224),
        preset: str = 'paper',
        task: str | None = None,
        space: Mapping[str, Any] | None = None,
        pool: Mapping[str, Any] | None = None,
        normalize: str = 'layer_norm',
        beta1: float = 1.0,
        beta2: float = 1.0,
        target_ce: float | None = None,
        warmup: float | None = None,
        survivor: Mapping[str, Any] | bool | None = None,
        passes: str = 'together',
        pretrained: str | None = None,
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        check_fields(
            dict(
                unknown, model=model, target=target, input_shape=input_shape, preset=preset,
                space=space, pool=pool, survivor=survivor, pretrained=pretrained,
            )
        )  # fmt: skip
        assert target is not None
        space, pool = dict(space or {}), dict(pool or {})
        self.preset = preset_of(preset)
        target_ce = self.preset.target_ce if target_ce is None else target_ce
        warmup = self.preset.warmup if warmup is None else warmup
        check_ranges(normalize, warmup, beta1=beta1, beta2=beta2, target_ce=target_ce)
        if pretrained and '://' not in pretrained and not Path(pretrained).is_file():
            raise FileNotFoundError(f'model.pretrained={pretrained!r} is not a file')
        classifier = to_wrap(model, data_preprocessor)
        super().__init__(data_preprocessor=classifier.data_preprocessor, init_cfg=init_cfg)
        self.model = classifier
        self.warmup, self.pretrained = warmup, pretrained
        self.beta1, self.beta2, self.target_ce = beta1, beta2, target_ce
        self.passes, self.bad_batches = passes_of(passes), BadBatches()
        self.loss_scale: Scale = as_it_is
        self.driver: object | None = None  # the `PoolHook` that shrinks the pool
        self.survivor = self.preset.survivor if survivor is None else SurvivorPhase.of(survivor)
        self.survivors: dict[str, nn.Module] = {}  # in the main network's place, by budget
        self.teacher: nn.Module | None = None  # theirs
        self.searching = True  # at first `PoolHook.begin` may have the main network alone
        self.supernet, kind = with_task(classifier, input_shape, space, task)
        use_latency(self.supernet, latency)
        self.task = kind(self.supernet, normalize)
        self._norms = norms_behind_choices(self.supernet)
        self.train()
        choices, cost = self.supernet.space, self.supernet.cost
        budgets = budgets_of(target, metric, tolerance, choices, cost)
        self.pool_size = size = positive('pool.size', pool.pop('size', 1000))
        pool['seed'] = shared_seed() if pool.get('seed') is None else pool['seed']
        rows = rows_by_budget(choices, cost, budgets, size, pool['seed'])
        self.pools = Pools.drawn(choices, budgets, rows, size, **pool)
        if pool.get('per_rank'):
            refuse_synchronised(classifier)
        self.is_built()
        require_fit(
            self,
            'A checkpoint of the dense classifier goes into model.pretrained; a checkpoint of an '
            'STP run needs the config of that run.',
        )
        for label, budget in budgets.items():
            MMLogger.get_current_instance().info(
                f'STP: {choices.size:,} architectures, {len(rows[label]):,} of them '
                f'{"meet" if choices.size <= ENUMERABLE else "found to meet"} {budget} within '
                f'{tolerance:.1%}, {len(self.pools[label])} in the pool'
            )

    @property
    def alone(self) -> bool:
        """Whether it is the survivors that are trained."""
        return bool(self.survivors)

    @property
    def pool(self) -> ArchitecturePool:
        """The pool, where there is one budget; else a `BudgetError`, and they are in `pools`."""
        return self.pools[self.pools.only]

    @property
    def budget(self) -> Budget:
        """The budget, where there is one; else a `BudgetError`."""
        return self.pools.budgets[self.pools.only]

    def init_weights(self) -> None:
        """Initialises the classifier, or loads ``pretrained`` and orders its channels.

        Raises:
            CheckpointError: If the pretrained weights do not fit the classifier.
        """
        super().init_weights()
        if self.pretrained is not None:
            load_pretrained(self.model, self.pretrained)
            self.supernet.order_channels()

    def train(self, mode: bool = True) -> STP:
        """Train or eval mode, as the classifier takes it.

        Raises:
            OptionError: If the classifier keeps norms in eval mode that normalise subnets.
        """
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        if mode and not self.alone:
            refuse_eval_norms(self._norms, self.model)
        return self

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """A step of MMEngine's training loop.

        Raises:
            RuntimeError: If no `PoolHook` is there: the search would never end.
        """
        self._refuse_undriven()
        found: dict[str, Tensor] = super().train_step(data, optim_wrapper)
        return found

    def _refuse_undriven(self) -> None:
        if self.driver is None:
            raise RuntimeError(
                'nothing shrinks the pool: the run would end without an architecture, and its '
                "checkpoints could not be exported. Add dict(type='mmstp.PoolHook') to "
                'custom_hooks; in a loop of your own, shrink stp.pool there and set stp.driver'
            )

    def forward(
        self, inputs: Tensor, data_samples: list[Any] | None = None, mode: str = 'tensor'
    ) -> Any:
        """A step of Algorithm 1 with ``mode='loss'``; else the main network runs, as a classifier.

        In the survivor phase it is the step of all survivors; else the largest of them runs.

        Args:
            inputs: Images of shape (batch, channels, height, width).
            data_samples: Their labels.
            mode: ``'loss'``, ``'predict'`` or ``'tensor'``.

        Returns:
            For ``'loss'`` the losses ``loss_ce``, ``loss_target``, ``loss_support`` (and
            ``loss_target_ce``), already weighted; for the survivor ``loss_ce`` and
            ``loss_teacher``, of several with their labels (``loss_ce-15``).
        """
        if mode != 'loss':
            return self.model(inputs, data_samples, mode=mode)
        if get_world_size() > 1 and MessageHub.get_current_instance().get_info('max_iters'):
            self._refuse_undriven()  # in a runner, where `train_step` is the wrapper's
        if self.alone:
            return survivor_losses(self, inputs, data_samples or [])
        if self.training:  # a hook may have changed modes behind `train`
            refuse_eval_norms(self._norms, self.model)
        return search_losses(self, inputs, data_samples or [])

    def export(self, architecture: Architecture | None = None) -> nn.Module:
        """A subnet (the pool's best one) as a classifier of its own; see `Supernet.export`.

        Raises:
            ArchitectureError: In the survivor phase, for another one than a survivor.
        """
        chosen = self.pool.best if architecture is None else Architecture.of(architecture)
        if not self.alone:
            return self.supernet.export(chosen)
        for label, network in self.survivors.items():
            if chosen == self.pools[label].best:
                return copy.deepcopy(network)
        raise ArchitectureError(
            f'{chosen} cannot be cut out: {self.pools.all_best} trained alone in this run, and '
            'what the others were part of is gone. Take a checkpoint of the search'
        )

    def go_alone(self) -> None:
        """Puts the last subnet of each pool, cut out, in the place of the main network."""
        assert self.survivor is not None
        main, self.survivors = self.model, cut_survivors(self.supernet, self.pools)
        *_, largest = self.survivors.values()
        self.model = Several(self.survivors) if len(self.survivors) > 1 else largest
        self.data_preprocessor = largest.data_preprocessor
        self.task.follow(largest)
        if self.survivor.teacher == 'main':
            self.teacher = main.requires_grad_(False).eval()


def check_fields(fields: Mapping[str, Any]) -> None:
    """Refuses fields of `STP`, with those inside, that do not exist or are of another kind.

    Raises:
        FieldError: Naming the field.
        OptionError: If ``preset`` is none, or an option of ``survivor`` is out of range.
    """
    accepted = [name for name in inspect.signature(STP).parameters if name != 'unknown']
    refuse_unknown('model (mmstp.STP)', fields, accepted)
    space, pool, survivor = (fields.get(name) for name in ('space', 'pool', 'survivor'))
    shape = fields.get('input_shape', default_of(STP, 'input_shape'))
    check_options(fields.get('model'), fields.get('target'), shape, space, pool, survivor)
    refuse_unknown('model.space', space or {}, options_of(SearchSpace))
    refuse_unknown('model.pool', pool or {}, ['size', *options_of(ArchitecturePool)])
    SurvivorPhase.of(survivor)
    trained = fields.get('pretrained') or isinstance(fields.get('model'), nn.Module)
    preset_of(fields.get('preset', default_of(STP, 'preset')), bool(trained))
