"""A compact network, or a part of one such as its backbone, rebuilt from its config."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..checkpoints import require_fit
from ..config_fields import constructor_options
from ..errors import CompactSpecError, ModelError
from ..foreign import Convolution
from ..registry import MODELS, build_model
from ..stp.deformable_attention import keep_heads_left, know_deformable_attention
from ..stp.two_stages import free_channels
from ..subnets.cut import compact
from ..subnets.norm_statistics import norms_with_statistics
from ..subnets.swap import Role, swap
from .plan_file import read_plan


@MODELS.register_module()
def CompactBackbone(
    backbone: Mapping[str, Any],
    plan: str | Mapping[str, Any],
    plan_part: str = 'backbone',
    init_cfg: Mapping[str, Any] | None = None,
    fresh: Collection[str] = (),
    **options: Any,
) -> nn.Module:
    """Builds a dense backbone and cuts it down; nothing is traced.

    A function rather than a wrapping class: the result is an instance of the dense backbone's own
    class, so its state-dict keys, ``train()``, ``frozen_stages``, ``norm_eval`` and ``out_indices``
    are the dense backbone's. Loading weights that do not fit it is an error.

    Args:
        backbone: The dense backbone's config.
        plan: The ``plan.json`` of an export, or a `mmstp.CompactSpec` as a dict.
        plan_part: The backbone's name in that file.
        init_cfg: Replaces the dense backbone's, whose weights would not fit.
        fresh: Paths of modules that the classifier did not have, so that there are no weights for
            them: norms of further outputs.
        **options: Further options of the dense backbone, over those in ``backbone``:
            ``out_indices``, ``frozen_stages``, ``norm_cfg``, ``with_cp``, … Layers that it has
            only with these (norms of further outputs) start as they are built, and weights of
            those that it lacks with these are passed over. ``norm_eval`` is one for every backbone.

    Raises:
        CompactSpecError: If the plan does not fit the backbone.
        TypeError: If the dense backbone has no such option.
    """
    dense = {key: value for key, value in backbone.items() if key != 'init_cfg'}
    network = plain = build_model(dense)
    begins = tuple(path + '.' for path in fresh)
    optional = {key for key in network.state_dict() if key.startswith(begins)}
    if options:
        own = 'norm_eval' in constructor_options(type(plain))
        norm_eval = not own and options.pop('norm_eval', False)
        network = build_model({**dense, **options})
        # of modules that only one of the two has
        both = dict(network.named_modules()).keys() & dict(plain.named_modules()).keys()
        keys = network.state_dict().keys() | plain.state_dict().keys()
        optional |= {key for key in keys if key.rpartition('.')[0] not in both}
        if norm_eval:
            swap(network, NormEval())
    _cut(network, plan, plan_part, optional)
    set_init_cfg(network, init_cfg)
    return network


@dataclass(frozen=True)
class NormEval(Role):
    """A backbone without ``norm_eval``, as one with it."""

    def members(self, base: type[nn.Module]) -> dict[str, Any]:
        def train(self: Any, mode: bool = True) -> Any:
            base.train(self, mode)
            for _, norm in norms_with_statistics(self):
                norm.training = False
            return self

        return {'train': train}


@MODELS.register_module()
def CompactPart(
    part: Mapping[str, Any], plan: str | Mapping[str, Any], plan_part: str = 'head', **options: Any
) -> nn.Module:
    """Builds a dense part of a network (a neck, a head) and cuts it down, as `CompactBackbone`.

    ``options`` are further ones of the part: detectors hand ``train_cfg`` and ``test_cfg`` to it.
    """
    network = _cut(build_model({**part, **options}), plan, plan_part)
    free_channels(network)
    return network


@MODELS.register_module()
def CompactModel(
    dense: str, plan: str | Mapping[str, Any], plan_part: str = 'model', **fields: Any
) -> nn.Module:
    """Builds a whole dense model and cuts down what lies in none of its compact parts.

    That is for models that build parts themselves, without a type in their config. The result is
    an instance of the dense model's own class.

    Args:
        dense: The type of the dense model, with its scope.
        plan: As for `CompactBackbone`.
        plan_part: The name in that file of what is cut here.
        **fields: Of the dense model's config, with its compact parts.
    """
    return _cut(build_model({'type': dense, **fields}), plan, plan_part)


def _cut(network: nn.Module, plan: Any, part: str, optional: Set[str] = frozenset()) -> nn.Module:
    """Makes a dense network compact, and strict about its weights."""
    spec = read_plan(plan, part)
    dense = _kernels(network)
    know_deformable_attention(network)
    compact(network, spec.without(optional - network.state_dict().keys()))
    keep_heads_left(network)
    for path, shape in _kernels(network).items():
        if shape[2:] != dense[path][2:]:
            raise CompactSpecError(
                f'{path}.weight: shape {shape} is not within the dense {dense[path]}, whose kernel '
                'is of another size: a plan leaves channels out, and this one was made for another '
                f'network than {type(network).__name__}'
            )
    hint = 'A compact network takes the weights of the export that it describes.'
    describe = spec.describe if spec.stages else None  # a part may have none
    require_fit(network, hint, describe, optional)
    return network


def _kernels(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of convolutions, by path."""
    layers = {path: m for path, m in network.named_modules() if isinstance(m, Convolution)}
    return {path: tuple(layer.weight.shape) for path, layer in layers.items()}


def set_init_cfg(network: nn.Module, init_cfg: Mapping[str, Any] | None) -> None:
    """Replaces the ``init_cfg`` of a network; a `ModelError` where it would not be loaded."""
    if init_cfg is not None and not hasattr(network, 'init_weights'):
        raise ModelError(
            f'init_cfg={dict(init_cfg)!r}: {type(network).__name__} has no init_weights(), which '
            'would load it; load the weights with torch'
        )
    vars(network)['init_cfg'] = None if init_cfg is None else dict(init_cfg)
