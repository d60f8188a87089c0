"""The losses of one step: of the search (Algorithm 1), and of survivors alone."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.logging import MessageHub
from torch import Tensor

from ..architecture import Architecture
from .bad_batches import no_loss
from .passes import Together
from .same_on_ranks import refuse_differing
from .tasks import summed


def search_losses(stp: Any, inputs: Tensor, data_samples: list[Any]) -> dict[str, Tensor]:
    """Three passes: the main network, a target subnet of a pool, a support subnet around it.

    Before the search begins (`PoolHook.begin`), the first alone.

    Args:
        stp: An `STP`; the target's distance goes into its pool, with `ArchitecturePool.per_rank`
            those of all ranks' targets.
        inputs: Images of shape (batch, channels, height, width).
        data_samples: Their labels.

    Returns:
        ``loss_ce``, ``loss_target``, ``loss_support`` (and ``loss_target_ce``), weighted. Where one
        is not finite, `no_loss`: nothing has changed then but what is drawn next.

    Raises:
        NotFiniteError: If that happens too often.
        RuntimeError: If the ranks have drawn different subnets.
    """
    stp.bad_batches.watch(stp.model)
    supernet, space, task = stp.supernet, stp.supernet.space, stp.task
    main, outputs = task.losses_and_outputs(
        stp.model, supernet.activate(space.largest), inputs, data_samples
    )
    backward = _passes(stp)
    losses = backward.add(_named(main))
    if not stp.searching:
        bad = stp.bad_batches.leave_out(_read(losses, stp), inputs)
        return no_loss(stp) if bad else backward.carried(losses)
    ramp = _ramp(stp.warmup)
    draws, own_draw, of_target = _draw(stp), get_rank() % stp.pools.draws, {}
    _, target, support = draws[own_draw]
    with supernet.activate(target):
        if stp.target_ce:
            own, target_outputs = task.losses_and_outputs(
                stp.model, supernet.activate(target), inputs, data_samples
            )
            every = [loss.mean() for key, loss in own.items() if 'loss' in key]
            of_target['loss_target_ce'] = stp.target_ce * torch.stack(every).sum()
        else:
            target_outputs = task.outputs(stp.model, inputs, data_samples)
    target_distance = task.distance(target_outputs, outputs)
    of_target['loss_target'] = stp.beta1 * ramp * target_distance
    losses.update(backward.add(of_target))
    if stp.beta2:
        with supernet.activate(support):
            support_outputs = task.outputs(stp.model, inputs, data_samples)
        distance = task.distance(support_outputs, outputs)
        losses.update(backward.add({'loss_support': stp.beta2 * ramp * distance}))
    # last: reading the numbers waits for a GPU, which has all three passes queued by now
    scores = target_distance.new_zeros(len(draws))
    scores[own_draw] = len(draws) * target_distance.detach()  # so the mean over ranks is its own
    names = [
        f'the unweighted loss of {one}{f" on rank {i}" if len(draws) > 1 else ""}'
        for i, (_, one, _) in enumerate(draws)
    ]
    numbers = _read({**losses, **dict(zip(names, scores, strict=True))}, stp, draws)
    if stp.bad_batches.leave_out(numbers, inputs):
        return no_loss(stp)
    for (budget, one, _), name in zip(draws, names, strict=True):
        stp.pools[budget].update(one, numbers[name])
    return backward.carried(losses)


def _draw(stp: Any) -> list[tuple[str, Architecture, Architecture]]:
    """The subnets of a step, alike on all ranks: budget, target and support, once or by rank."""
    draws = []
    for _ in range(stp.pools.draws):
        budget, target = stp.pools.draw()
        support = stp.pools.support(stp.supernet.space, budget, target) if stp.beta2 else target
        draws.append((budget, target, support))
    return draws


def survivor_losses(stp: Any, inputs: Tensor, data_samples: list[Any]) -> dict[str, Tensor]:
    """A pass for each survivor: its own losses; with a teacher the distance, ``loss_teacher``.

    Of several budgets the names end with the label, as in ``loss_ce-15``.

    Raises:
        NotFiniteError: If one is not finite too often.
    """
    stp.bad_batches.watch(stp.model)
    task, backward, losses = stp.task, _passes(stp), {}
    if stp.teacher is not None:
        with torch.no_grad():
            taught = task.outputs(stp.teacher, inputs, data_samples)
    for label, network in stp.survivors.items():
        # some heads change what they are given
        samples = copy.deepcopy(data_samples) if len(stp.pools) > 1 else data_samples
        if stp.teacher is None:
            own = _named(summed(network(inputs, samples, mode='loss')))
        else:
            found, outputs = task.losses_and_outputs(network, nullcontext(), inputs, samples)
            own = _named(found)
            own['loss_teacher'] = stp.beta1 * task.distance(outputs, taught)
        suffix = stp.pools.suffix(label)
        losses.update(backward.add({f'{name}{suffix}': loss for name, loss in own.items()}))
    if stp.bad_batches.leave_out(_read(losses, stp), inputs):
        return no_loss(stp)
    return backward.carried(losses)


def _passes(stp: Any) -> Together:
    """The backward passes of a step."""
    kind: type[Together] = stp.passes if torch.is_grad_enabled() else Together
    return kind(stp.model, stp.loss_scale)


def _named(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The classifier's own losses, as they are called here."""
    return {('loss_ce' if key == 'loss' else key): loss for key, loss in losses.items()}


def _read(losses: Mapping[str, Tensor], stp: Any, draws: Sequence[Any] = ()) -> dict[str, float]:
    """The losses as numbers, the same on all ranks; what these have drawn is compared on the way.

    Raises:
        RuntimeError: On all ranks, if it differs, naming ranks and fields.
    """
    names = [key for key in losses if 'loss' in key]  # heads may give accuracies too
    numbers = torch.stack([losses[key].mean() for key in names]).detach()
    numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
    # eight bits, so that sums over 256 ranks are exact; those that hash alike differ again later
    drawn = zlib.crc32(repr(draws).encode()) % 256
    numbers = torch.cat([numbers, *(numbers.new_full((1,), drawn**n) for n in (1, 2))])
    all_reduce(numbers, 'mean')  # over the ranks
    *read, mean, mean_of_squares = numbers.tolist()
    if mean_of_squares != mean**2:  # the variance over the ranks is not zero
        refuse_differing({'draws': [str(one) for one in draws], **stp.pools.fields()})
    return dict(zip(names, read, strict=True))


def _ramp(warmup: float) -> float:
    """How much of the distillation counts now: it rises from 0 to 1 over the warmup."""
    if not warmup:
        return 1.0
    hub = MessageHub.get_current_instance()
    done, of = hub.get_info('iter'), hub.get_info('max_iters')
    if done is None or not of:
        raise RuntimeError(
            f'model.warmup={warmup} needs to know how far the training is: train with '
            "MMEngine's runner and its RuntimeInfoHook, or set 'iter' and 'max_iters' with "
            'MessageHub.get_current_instance().update_info'
        )
    return min(1.0, done / of / warmup)
