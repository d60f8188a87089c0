"""What `coverage.py` measures: a network of a library, built without its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Network:
    """A network that is measured, or named with the reason why it is not.

    Attributes:
        source: The library.
        family: The type of the backbone, or the module of the library.
        name: Its name in the library; for mmpretrain the config's path without ``.py``.
        build: Makes the network, with whatever initialisation it has, and inputs for it in a form
            that `mmstp.Supernet` takes, of one image or one text.
        excluded: Why it is not measured.
    """

    source: str
    family: str
    name: str
    build: Callable[[], tuple[nn.Module, Any]] | None = None
    excluded: str = ''

    @property
    def path(self) -> str:
        """What ``--only`` is matched with."""
        return f'{self.source}/{self.family}/{self.name}'
