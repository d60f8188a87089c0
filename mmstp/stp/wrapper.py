"""A model around another, in which hooks find what they look for in that one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.dist import is_distributed
from mmengine.model import BaseModel, revert_sync_batchnorm
from torch import nn

from ..registry import MODELS


class Wrapper(BaseModel):
    """Passes on what belongs to the model inside, ``model``: ``head``, ``bbox_head``, ``backbone``.

    Names that it has itself, and private ones, are its own.
    """

    _built = False

    def is_built(self) -> None:
        """The constructor has set what it has to: other names can be those of the model inside."""
        self._built = True

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inside = vars(self).get('_modules', {}).get('model')
            if inside is None or name.startswith('_') or not hasattr(inside, name):
                raise
            return getattr(inside, name)

    def __setattr__(self, name: str, value: Any) -> None:
        here = name in vars(self) or name in vars(self).get('_modules', {})
        own = here or name.startswith('_') or hasattr(type(self), name)
        if self._built and not own and hasattr(self.model, name):
            setattr(self.model, name, value)
        else:
            super().__setattr__(name, value)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """The depth of a parameter in the model, for layer-wise decay of the learning rate."""
        found: tuple[int, int] = self.model.get_layer_depth(param_name.removeprefix('model.'))
        return found


def to_wrap(model: Mapping[str, Any] | nn.Module, data_preprocessor: Any) -> Any:
    """The model inside, built where it is a config.

    In a single process its norms are not synchronised: the runner would put others in their place,
    and a supernet's layers may not be replaced.

    Args:
        model: Built, or a config.
        data_preprocessor: The model's, where its config names none.
    """
    if not isinstance(model, nn.Module):
        own = {} if data_preprocessor is None else {'data_preprocessor': data_preprocessor}
        model = MODELS.build({**own, **model})
    return model if is_distributed() else revert_sync_batchnorm(model)
