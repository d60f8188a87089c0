"""What of MMEngine's config a search cannot run with, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS

from ..registry import type_of
from .hooks.evaluation import SubnetEvalHook

REFUSED = {
    'compile': 'torch.compile cannot follow a network that is another subnet in every pass. Leave '
    'it out of the config; exported networks can be compiled',
    'activation_checkpointing': 'it runs blocks again in the backward pass, when the network is '
    "another subnet. Leave it out of the config; model.passes='apart' and AMP (--amp) save memory "
    'too',
    'efficient_conv_bn_eval': 'it replaces the forward of layers that run as parts of themselves. '
    'Leave it out of the config',
}
SHARDED = (
    'it puts pieces of its own in the place of parameters (FSDP, DeepSpeed), of which subnets take '
    'the first channels, or wraps no more than parts of the model. Leave it out of the config: '
    "several GPUs train by MMDistributedDataParallel, and model.passes='apart' saves memory"
)
STRATEGY = (
    "the survivor's phase wraps the model anew, which strategies for several processes cannot do, "
    "and sharded parameters (FSDP, DeepSpeed) have no channels to take. Leave 'strategy' and "
    "'runner_type' out of the config: MMEngine's Runner trains on several GPUs too"
)


def refuse_unmeasured(hooks: Iterable[Hook], prefixes: Iterable[str]) -> None:
    """Raises a `RuntimeError` where checkpoints are chosen by a subnet that nothing evaluates.

    Args:
        hooks: Of the run.
        prefixes: What the metrics of its subnets begin with.
    """
    hooks, expected = list(hooks), tuple(dict.fromkeys(f'{prefix}/' for prefix in prefixes))
    evaluated = any(isinstance(hook, SubnetEvalHook) for hook in hooks)
    for hook in hooks:
        best = getattr(hook, 'save_best', None)
        names = best if isinstance(best, list) else [best]
        for name in filter(lambda name: str(name).startswith('subnet'), names):
            if evaluated and str(name).startswith(expected):
                continue
            said = f'default_hooks.checkpoint.save_best={name!r}'
            if evaluated:
                raise RuntimeError(f'{said}: expected a metric of {", ".join(expected)}')
            raise RuntimeError(
                f"{said}: nothing evaluates subnets. Add dict(type='mmstp.SubnetEvalHook') to "
                'custom_hooks'
            )


def refuse_fields(config: Mapping[str, Any]) -> None:
    """Raises a `RuntimeError` that names a field of a run's config, its value and the reason."""
    for field, reason in REFUSED.items():
        if config.get(field) not in (None, False):
            raise RuntimeError(f'{field}={config[field]!r}: {reason}')
    kind = (config.get('model_wrapper_cfg') or {}).get('type', MMDistributedDataParallel)
    wrapper = type_of(kind, MODEL_WRAPPERS)  # None: MMEngine says that there is none
    if wrapper is not None and not issubclass(wrapper, MMDistributedDataParallel):
        raise RuntimeError(f'model_wrapper_cfg.type={kind!r}: {SHARDED}')
    strategy = config.get('strategy') or {}
    flexible = config.get('runner_type') == 'FlexibleRunner'
    if not strategy and flexible and config.get('launcher', 'none') != 'none':
        strategy = {'type': 'DDPStrategy'}  # what it takes then
    kind = strategy.get('type', 'SingleDeviceStrategy')
    if 'SingleDeviceStrategy' not in (kind, getattr(kind, '__name__', kind)):
        raise RuntimeError(f'strategy.type={kind!r}: {STRATEGY}')
