"""How the best subnet is evaluated."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...architecture import Architecture
from ...config_fields import options_of, positive, refuse_unknown
from ...registry import HOOKS
from ..of_runner import stp_of
from .statistics import calibrate_on


@HOOKS.register_module()
class SubnetEvalHook(Hook):
    """Evaluates the pool's best subnet after the main network, on the same data and metrics.

    Its metrics carry the prefix ``subnet/``; of several budgets each has its own, such as
    ``subnet-15/``, and ``subnet/`` are the means. It is cut out, and the statistics of its norm
    layers are estimated anew, so the main network is not touched. In the survivor phase it is the
    network that is trained: its own metrics, of several budgets the largest survivor's, get the
    prefix as well, so that curves go on.

    Args:
        num_images: Training images for the statistics.

    Raises:
        OptionError: If the number is out of range.
    """

    # before the metrics are logged and the best checkpoint is chosen, and while EMA weights, if
    # there are any, are in the model
    priority = 'HIGHEST'

    def __init__(self, num_images: int = 2000, **unknown: Any) -> None:
        refuse_unknown('custom_hooks (mmstp.SubnetEvalHook)', unknown, options_of(SubnetEvalHook))
        self.num_images = positive('SubnetEvalHook.num_images', num_images)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        self._evaluate(runner, runner.val_loop, metrics)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        self._evaluate(runner, runner.test_loop, metrics)

    @torch.no_grad()
    def _evaluate(self, runner: Runner, loop: Any, metrics: dict[str, Any] | None) -> None:
        if metrics is None:
            return
        stp = stp_of(runner)
        if stp.alone:
            *others, largest = stp.survivors  # that is the one which was evaluated
            found = {label: _metrics(loop, stp.survivors[label]) for label in others}
            found[largest] = dict(metrics)
        else:
            found = {
                label: self._of_subnet(runner, loop, pool.best) for label, pool in stp.pools.items()
            }
        # a detector that finds nothing has no metrics: those of the others, or of the main network
        names = list(dict.fromkeys(name for own in found.values() for name in own)) or [*metrics]
        for label, own in found.items():
            prefix = f'subnet{stp.pools.suffix(label)}'
            if names and not own:
                runner.logger.warning(
                    f'{prefix} found nothing in the validation: its metrics are 0'
                )
                own.update(dict.fromkeys(names, 0.0))
            metrics.update({f'{prefix}/{name}': value for name, value in own.items()})
        if len(found) > 1:
            for name in names:
                total = sum(own.get(name, 0.0) for own in found.values())
                metrics[f'subnet/{name}'] = total / len(found)

    def _of_subnet(self, runner: Runner, loop: Any, architecture: Architecture) -> dict[str, Any]:
        """A subnet's own metrics."""
        network: Any = stp_of(runner).export(architecture)
        calibrate_on(network, runner.train_dataloader, self.num_images)
        for module in network.modules():
            module.training = False
        return _metrics(loop, network)


def _metrics(loop: Any, network: Any) -> dict[str, Any]:
    """Of a network in eval mode."""
    for batch in loop.dataloader:
        loop.evaluator.process(data_samples=network.val_step(batch), data_batch=batch)
    found: dict[str, Any] = loop.evaluator.evaluate(len(loop.dataloader.dataset))
    return found
