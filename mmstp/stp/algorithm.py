"""Stimulative-training pruning (STP, Algorithm 1) as an MMEngine model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, broadcast, get_world_size
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn

from ..architecture import Architecture
from ..checkpoints import differences, require_fit
from ..config_fields import options_of, positive, refuse_unknown
from ..errors import CheckpointError
from ..registry import MODELS
from ..search.budget import ENUMERABLE, Budget, feasible_rows
from ..search.space import SearchSpace
from ..subnets.supernet import Supernet
from .classifier_wrapper import ClassifierWrapper
from .heads import checked_logits, losses_and_logits, read_head
from .losses import label_kl, normalized_kl
from .norm_modes import norms_behind_choices, refuse_eval_norms
from .options import check_options, check_ranges, not_finite, refuse_not_finite
from .pool import ArchitecturePool


@MODELS.register_module()
class STP(ClassifierWrapper):
    """Trains a classifier as the main network, with a target and a support subnet inside it.

    One step is three passes over the same weights and one backward pass (Alg. 1)::

        loss = CE(main) + beta1 * KL(main || target) + beta2 * KL(main || support)

    The target subnet comes from a pool of architectures that all meet the budget, the support
    subnet is a random enlargement of it. `PoolHook` shrinks the pool until one is left.

    Args:
        model: A classifier of mmpretrain, as a config or built.
        target: The budget: a fraction of the dense network's cost, or a number above 1. Required.
        metric: ``'macs'`` or ``'params'``.
        tolerance: Deviation accepted, relative to the target.
        input_shape: Shape of one image (channels, height, width), for the trace and the costs.
        space: Options of `mmstp.SearchSpace`: ``widths``, ``divisor``, ``depths``, ``stages``,
            ``fix``, ``stem``.
        pool: ``size`` (default 1000), ``sampling`` and ``alpha`` of `mmstp.ArchitecturePool`, and
            ``seed`` (default: from the run's seed).
        normalize: How logits are normalised in the distillation, see `normalized_kl`. Classifiers
            of several labels distil label by label (`label_kl`), without it.
        beta1: Weight of the target subnet's distillation (Eq. 4).
        beta2: Weight of the support subnet's distillation (Eq. 7); 0 leaves its pass out.
        target_ce: Weight of a cross entropy of the target subnet; the paper has none (0).
        warmup: Fraction of the training over which beta1 and beta2 rise linearly from 0.
        pretrained: A checkpoint (file or address) of the dense classifier to start from. The
            channels of every group are then ordered by importance, so that the first are the ones
            worth keeping.
        data_preprocessor: The classifier's, where its config names none.
        init_cfg: Of `mmengine.model.BaseModule`.

    Raises:
        FieldError: If an option of ``space`` or ``pool`` does not exist, or is of another kind.
        ValueError: If an option is out of range, or norms stay in eval mode in training.
        TypeError: If the classifier has no head that gives logits of shape (batch, classes).
        BudgetError: If no architecture meets the budget.
        SpaceError: If nothing in the classifier can be pruned.
    """

    def __init__(
        self,
        model: Mapping[str, Any] | nn.Module,
        target: float | None = None,
        metric: str = 'macs',
        tolerance: float = 0.02,
        input_shape: Sequence[int] = (3, 224, 224),
        space: Mapping[str, Any] | None = None,
        pool: Mapping[str, Any] | None = None,
        normalize: str = 'layer_norm',
        beta1: float = 1.0,
        beta2: float = 1.0,
        target_ce: float = 0.0,
        warmup: float = 0.0,
        pretrained: str | None = None,
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        accepted = [name for name in inspect.signature(STP).parameters if name != 'unknown']
        refuse_unknown('model (mmstp.STP)', unknown, accepted)
        check_options(model, target, input_shape, space, pool)
        assert target is not None
        space, pool = dict(space or {}), dict(pool or {})
        refuse_unknown('model.space', space, options_of(SearchSpace))
        refuse_unknown('model.pool', pool, ['size', *options_of(ArchitecturePool)])
        check_ranges(normalize, warmup, beta1=beta1, beta2=beta2, target_ce=target_ce)
        if pretrained and '://' not in pretrained and not Path(pretrained).is_file():
            raise FileNotFoundError(f'model.pretrained={pretrained!r} is not a file')
        if isinstance(model, nn.Module):
            classifier: Any = model
        else:
            own = {} if data_preprocessor is None else {'data_preprocessor': data_preprocessor}
            classifier = MODELS.build({**own, **model})
        super().__init__(data_preprocessor=classifier.data_preprocessor, init_cfg=init_cfg)
        self.model = classifier
        self.normalize, self.warmup, self.pretrained = normalize, warmup, pretrained
        self.beta1, self.beta2, self.target_ce = beta1, beta2, target_ce
        self.driver: object | None = None  # the `PoolHook` that shrinks the pool

        head = getattr(classifier, 'head', None)
        if not isinstance(head, nn.Module):
            raise TypeError(f'{type(classifier).__name__} has no head whose loss STP could take')
        self.supernet = Supernet(classifier, torch.zeros(1, *input_shape), **space)
        self._prediction = read_head(self.supernet)
        self._norms = norms_behind_choices(self.supernet)
        self.train()
        choices, cost = self.supernet.space, self.supernet.cost
        self.budget = Budget.of(target, metric, tolerance, choices, cost)
        self.pool_size = size = positive('pool.size', pool.pop('size', 1000))
        seed = pool.pop('seed', None)
        if seed is None:
            seed = _shared_seed()
        rows = feasible_rows(choices, cost, self.budget, size, seed)
        chosen = np.random.default_rng(seed).permutation(len(rows))[:size]
        self.pool = ArchitecturePool(list(map(choices.decode, rows[chosen])), seed=seed, **pool)
        self.is_built()
        require_fit(
            self,
            'A checkpoint of the dense classifier goes into model.pretrained; a checkpoint of an '
            'STP run needs the config of that run.',
        )
        MMLogger.get_current_instance().info(
            f'STP: {choices.size:,} architectures, {len(rows):,} of them '
            f'{"meet" if choices.size <= ENUMERABLE else "found to meet"} '
            f'{self.budget.target:,.0f} {metric} within {tolerance:.1%}, '
            f'{len(self.pool)} in the pool'
        )

    def init_weights(self) -> None:
        """Initialises the classifier, or loads ``pretrained`` and orders its channels.

        Raises:
            CheckpointError: If the pretrained weights do not fit the classifier.
        """
        super().init_weights()
        if self.pretrained is None:
            return
        from_file = CheckpointLoader.load_checkpoint(self.pretrained, map_location='cpu')
        weights = from_file.get('state_dict', from_file)
        if found := differences(self.model, weights):
            raise CheckpointError(
                f'model.pretrained={self.pretrained!r} does not fit {type(self.model).__name__}:'
                + ''.join(f'\n  {line}' for line in found[:5])
            )
        if bad := not_finite(self.model, weights):
            raise CheckpointError(
                f'model.pretrained={self.pretrained!r}: {bad[0]} holds numbers that are not finite'
            )
        self.model.load_state_dict(weights, strict=False)  # only batch counters can be absent
        self.supernet.order_channels()

    def train(self, mode: bool = True) -> STP:
        """Train or eval mode, as the classifier takes it.

        Raises:
            ValueError: If the classifier keeps norms in eval mode that normalise subnets.
        """
        super().train(mode)
        if mode:
            self._refuse_eval_norms()
        return self

    def _refuse_eval_norms(self) -> None:
        refuse_eval_norms(self._norms, getattr(self.model, 'backbone', None))

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

        Args:
            inputs: Images of shape (batch, channels, height, width).
            data_samples: Their labels.
            mode: ``'loss'``, ``'predict'`` or ``'tensor'``.

        Returns:
            For ``'loss'`` the losses ``loss_ce``, ``loss_target``, ``loss_support`` (and
            ``loss_target_ce``), already weighted.
        """
        if mode != 'loss':
            return self.model(inputs, data_samples, mode=mode)
        if get_world_size() > 1 and MessageHub.get_current_instance().get_info('max_iters'):
            self._refuse_undriven()  # in a runner, where `train_step` is the wrapper's
        if self.training:  # a hook may have changed modes behind `train`
            self._refuse_eval_norms()
        space = self.supernet.space
        main, logits = losses_and_logits(self.supernet, space.largest, inputs, data_samples or [])
        losses = {('loss_ce' if key == 'loss' else key): loss for key, loss in main.items()}
        ramp = self._ramp()
        target = self.pool.sample()
        with self.supernet.activate(target):
            if self.target_ce:
                own, target_logits = losses_and_logits(
                    self.supernet, target, inputs, data_samples or []
                )
                every = [loss.mean() for key, loss in own.items() if 'loss' in key]
                losses['loss_target_ce'] = self.target_ce * torch.stack(every).sum()
            else:
                target_logits = self._logits(inputs)
        target_distance = self._distance(target_logits, logits)
        losses['loss_target'] = self.beta1 * ramp * target_distance
        if self.beta2:
            with self.supernet.activate(space.expand(target, self.pool.rng)):
                support_logits = self._logits(inputs)
            losses['loss_support'] = self.beta2 * ramp * self._distance(support_logits, logits)
        # last: reading the numbers waits for a GPU, which has all three passes queued by now
        names = [key for key in losses if 'loss' in key]
        numbers = torch.stack([target_distance, *(losses[key].mean() for key in names)]).detach()
        all_reduce(numbers, 'mean')  # over the ranks
        distance, *values = numbers.tolist()
        found = {**dict(zip(names, values, strict=True)), f'the distance of {target}': distance}
        refuse_not_finite(found, inputs)
        self.pool.update(target, distance)
        return losses

    def _distance(self, logits: Tensor, main: Tensor) -> Tensor:
        if self._prediction.per_label:
            return label_kl(logits, main)
        return normalized_kl(logits, main, self.normalize)

    def _logits(self, inputs: Tensor) -> Tensor:
        return checked_logits(self.model, self.model(inputs, mode='tensor'))

    def _ramp(self) -> float:
        if not self.warmup:
            return 1.0
        hub = MessageHub.get_current_instance()
        done, of = hub.get_info('iter'), hub.get_info('max_iters')
        if done is None or not of:
            raise RuntimeError(
                f'model.warmup={self.warmup} needs to know how far the training is: train with '
                "MMEngine's runner and its RuntimeInfoHook, or set 'iter' and 'max_iters' with "
                'MessageHub.get_current_instance().update_info'
            )
        return min(1.0, done / of / self.warmup)

    def export(self, architecture: Architecture | None = None) -> nn.Module:
        """A subnet (the pool's best one) as a classifier of its own; see `Supernet.export`."""
        return self.supernet.export(self.pool.best if architecture is None else architecture)


def _shared_seed() -> int:
    """A seed that follows the run's, the same on all ranks."""
    seed = torch.randint(2**31, ())
    broadcast(seed)
    return int(seed)


def unwrapped(runner: Runner) -> Any:
    """The runner's model without its wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def stp_of(runner: Runner) -> STP:
    """The same, which has to be an `STP`; else a `TypeError`."""
    model = unwrapped(runner)
    if not isinstance(model, STP):
        raise TypeError(
            f'the hooks of mmstp need model.type to be mmstp.STP, not {type(model).__name__}'
        )
    return model
