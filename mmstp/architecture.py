"""The architecture of a subnet, as the paper writes it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from .errors import ArchitectureError


@dataclass(frozen=True)
class Architecture:
    """Blocks kept and fraction of channels kept, stage by stage.

    It prints as in Table 7 of the paper, ``((2, 3, 4, 2), (0.3, 0.3, 0.3, 0.7))``, and is a plain
    value: hashable, comparable, without a model.

    Args:
        depths: Blocks kept in each stage.
        widths: Fraction of the channels kept in each stage, in (0, 1].

    Raises:
        ArchitectureError: If the two differ in length or hold a value out of range.
    """

    depths: tuple[int, ...]
    widths: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths):
            raise ArchitectureError(
                f'{self}: {len(self.depths)} depths and {len(self.widths)} widths; '
                'an architecture has one of each per stage'
            )
        for depth in self.depths:
            if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
                raise ArchitectureError(f'{self}: depth {depth!r} is not a whole number above 0')
        for width in self.widths:
            if not isinstance(width, (int, float)) or not 0 < width <= 1:
                raise ArchitectureError(f'{self}: width {width!r} is not a fraction in (0, 1]')

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """Reads what `str` prints; an `ArchitectureError` for a text of another form."""
        try:
            value: Any = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise ArchitectureError(_form(text)) from error
        if isinstance(value, str):
            raise ArchitectureError(_form(text))
        return cls.of(value)

    @classmethod
    def of(cls, value: Any) -> Architecture:
        """What every function that takes an architecture takes: one, its text, or nested lists.

        Nested tuples or lists are what a config or a JSON file holds; an `ArchitectureError` for
        anything else.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        if not pair or not all(isinstance(part, (tuple, list)) for part in value):
            raise ArchitectureError(_form(value))
        depths, widths = value
        for width in widths:
            if isinstance(width, bool) or not isinstance(width, (int, float)):
                raise ArchitectureError(_form(value))
        # a whole 1 prints as the others do; what else is whole is out of range
        return cls(tuple(depths), tuple(1.0 if width == 1 else width for width in widths))

    from_nested = of  # its name before

    def contains(self, other: Architecture) -> bool:
        """Whether every block and channel of ``other`` is kept here too."""
        return (
            len(self.depths) == len(other.depths)
            and all(a >= b for a, b in zip(self.depths, other.depths, strict=True))
            and all(a >= b for a, b in zip(self.widths, other.widths, strict=True))
        )

    def joined(self, other: Architecture) -> Architecture:
        """The smallest that contains both, of as many stages."""
        return Architecture(
            tuple(map(max, self.depths, other.depths)), tuple(map(max, self.widths, other.widths))
        )

    def __str__(self) -> str:
        return f'({self.depths}, {self.widths})'


def _form(value: object) -> str:
    return (
        f'architecture {value!r:.200} does not parse: expected the blocks and the fraction of '
        'channels kept per stage, such as "((2, 3, 4, 2), (0.3, 0.3, 0.3, 0.7))"'
    )
