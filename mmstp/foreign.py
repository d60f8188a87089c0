"""Private parts of PyTorch and OpenMMLab that mmstp uses, each with what it was checked against.

«torch 2.6 to 2.14» is 2.6.0, 2.11.0, 2.13.0 and 2.14.1 by ``.ci/wheel_smoke``; all tests ran with
2.11.0.

| part | checked against |
| --- | --- |
| ``_BatchNorm``, ``_NormBase``, ``_ConvNd``: bases of layers | torch 2.6 to 2.14 |
| ``Module._parameters``, ``_buffers``: what a module itself holds | torch 2.6 to 2.14 |
| ``Module._load_state_dict_pre_hooks``: their order | torch 2.6 to 2.14 |
| ``Module._forward_hooks``, ``_forward_pre_hooks`` and what belongs to them | torch 2.11.0 |
| ``Module._compiled_call_impl``, ``OptimizedModule``: compiled or not | torch 2.6 to 2.14 |
| ``torch.nn.modules.module._global_*_registration_hooks`` | torch 2.11.0 |
| ``torch.utils._pytree``: nested outputs | torch 2.6 to 2.14 |
| ``torch.overrides._get_current_function_mode_stack`` | torch 2.6 to 2.14 |
| ``OpOverload._schema``: names of operators | torch 2.6 to 2.14 |
| ``TransformerEncoderLayer._sa_block``, ``_ff_block``: its two halves | torch 2.11.0 |
| ``einops.einops._reconstruct_from_shape``, in `mmstp.subnets.einops_sizes` | einops 0.8.2 |
| ``torch.compiler.is_compiling`` and its kind, while a model is traced | torch 2.11.0 |
| ``torch._shape_as_tensor``; ``_python_dispatch._disable_current_modes`` | torch 2.11.0 |
| ``Runner._randomness_cfg`` | onedl-mmengine 0.10.12, mmengine 0.10.7 |
| ``torch._dynamo.config``: how often a piece of code is compiled again | torch 2.11.0 |
| ``DataLoader.batch_sampler`` is what it reads when it is iterated | torch 2.11.0 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch._dynamo import config as dynamo_config
from torch.nn.modules import module as hooks
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as Convolution
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes as untraced

__all__ = ['BatchNorm', 'Convolution', 'NormBase', 'function_modes', 'pytree', 'untraced']


def recompiling() -> AbstractContextManager[None]:
    """Within it TorchDynamo compiles a piece of code however often it finds it to be another.

    Beyond the eighth time it would run it as it is: of many networks of a class those that come
    last, whole or behind a graph break.
    """
    limits = ('recompile_limit', 'accumulated_recompile_limit')
    found: AbstractContextManager[None] = dynamo_config.patch(dict.fromkeys(limits, 2**31))
    return found


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers, whatever its class says of them."""
    both = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in both.items() if tensor is not None}


def is_buffer(module: nn.Module, name: str) -> bool:
    """Whether a module has a buffer of this name."""
    return name in module._buffers


def empty_buffers(model: nn.Module) -> int:
    """How many registered buffers hold no tensor (yet)."""
    return sum(x is None for module in model.modules() for x in module._buffers.values())


def set_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a tensor in the place of a parameter or buffer, of another shape too."""
    store: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
    store[name] = tensor


def is_compiled(module: nn.Module) -> bool:
    """Whether it came from `torch.compile`, or `nn.Module.compile` was called."""
    return isinstance(module, OptimizedModule) or module._compiled_call_impl is not None


def carry_hooks(module: nn.Module, other: nn.Module) -> None:
    """Gives another module the forward hooks of one."""
    names = ('_forward_hooks', '_forward_hooks_with_kwargs', '_forward_hooks_always_called',
             '_forward_pre_hooks', '_forward_pre_hooks_with_kwargs')  # fmt: skip
    for name in names:
        getattr(other, name).update(getattr(module, name))


def has_hooks_before(module: nn.Module) -> bool:
    """Whether it has a ``forward_pre_hook``."""
    return bool(module._forward_pre_hooks)


def before_loading(module: nn.Module, hook: Callable[..., None], first: bool = False) -> None:
    """Calls ``hook(module, state_dict, prefix, …)`` before weights are loaded.

    That is behind the module's own hooks, or before them (``first``). The module may be a part of
    what is loaded.
    """
    handle = module._register_load_state_dict_pre_hook(hook, with_module=True)
    if first:
        hooks: Any = module._load_state_dict_pre_hooks
        hooks.move_to_end(handle.id, last=False)


@contextmanager
def registration_hooks_kept() -> Iterator[None]:
    """Takes away the global registration hooks that `torch.export` leaves behind when it fails."""
    stores = (
        hooks._global_buffer_registration_hooks,
        hooks._global_module_registration_hooks,
        hooks._global_parameter_registration_hooks,
    )
    before = [dict(store) for store in stores]
    try:
        yield
    finally:
        for store, known in zip(stores, before, strict=True):
            for key in [key for key in store if key not in known]:
                del store[key]


@contextmanager
def as_if_run() -> Iterator[None]:
    """Models that ask are told that they are not compiled or exported: they run another forward."""
    names = ('is_compiling', 'is_exporting', 'is_dynamo_compiling')
    before = {
        name: getattr(torch.compiler, name) for name in names if hasattr(torch.compiler, name)
    }
    try:
        for name in before:
            setattr(torch.compiler, name, lambda: False)
        yield
    finally:
        for name, function in before.items():
            setattr(torch.compiler, name, function)


def schema_name(operator: Any) -> str | None:
    """An operator's name with its namespace: ``'aten::relu_'``; None of a Python function."""
    schema = getattr(operator, '_schema', None)
    return None if schema is None else str(schema.name)


def randomness(runner: Any) -> Mapping[str, Any]:
    """The ``randomness`` of a runner's config."""
    found: Mapping[str, Any] = runner._randomness_cfg
    return found


def set_batch_sampler(loader: Any, batches: Any) -> None:
    """Puts another batch sampler into a dataloader, which refuses that once it is made."""
    vars(loader)['batch_sampler'] = batches
