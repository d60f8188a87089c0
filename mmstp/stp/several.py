"""Several networks in the place of one model, each by the label of its budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


class Several(nn.Module):
    """What is asked of one model, the largest of them answers; what hooks set, all of them get.

    They prepare images as the largest does.

    Args:
        networks: By label, the largest last.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        *_, largest = networks.values()
        for label, network in networks.items():
            network.data_preprocessor = largest.data_preprocessor
            self.add_module(label.replace('.', '_'), network)  # no names with dots in PyTorch

    def forward(self, *args: Any, **options: Any) -> Any:
        """That of the largest network."""
        *_, largest = self.children()
        return largest(*args, **options)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith('_') or not self._modules:
                raise
            return _as_one([getattr(network, name) for network in self.children()])

    def __setattr__(self, name: str, value: Any) -> None:
        own = name.startswith('_') or name in vars(self) or hasattr(type(self), name)
        if own or not hasattr(self, name):
            super().__setattr__(name, value)
        else:
            for network in self.children():
                setattr(network, name, value)


class _Each:
    """What several networks have by one name: set, called and looked into at once."""

    def __init__(self, found: Sequence[Any]) -> None:
        vars(self)['_found'] = found

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return _as_one([getattr(one, name) for one in self._found])

    def __setattr__(self, name: str, value: Any) -> None:
        for one in self._found:
            setattr(one, name, value)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the last gives."""
        return [one(*args, **options) for one in self._found][-1]


def _as_one(found: Sequence[Any]) -> Any:
    """Parts and methods as one; of anything else the last."""
    return _Each(found) if callable(found[-1]) else found[-1]
