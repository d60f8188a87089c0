"""A model around a classifier, in which hooks find what they look for in a classifier."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModel


class ClassifierWrapper(BaseModel):
    """Passes on what belongs to the classifier, ``model``: ``head``, ``backbone``, ``loss_module``.

    Names that it has itself, and private ones, are its own.
    """

    _built = False

    def is_built(self) -> None:
        """The constructor has set what it has to: other names can be the classifier's."""
        self._built = True

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            classifier = vars(self).get('_modules', {}).get('model')
            if classifier is None or name.startswith('_') or not hasattr(classifier, name):
                raise
            return getattr(classifier, name)

    def __setattr__(self, name: str, value: Any) -> None:
        here = name in vars(self) or name in vars(self).get('_modules', {})
        own = here or name.startswith('_') or hasattr(type(self), name)
        if self._built and not own and hasattr(self.model, name):
            setattr(self.model, name, value)
        else:
            super().__setattr__(name, value)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """The depth of a parameter in the classifier, for layer-wise decay of the learning rate."""
        found: tuple[int, int] = self.model.get_layer_depth(param_name.removeprefix('model.'))
        return found
