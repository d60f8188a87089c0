"""einops' functions, whose numbers a subnet does not have: ``rearrange(x, '…', h=self.heads)``.

They check that the numbers fill the tensor before they reshape it. While sizes are supplied, the
reshape that follows gets the subnet's anyway (`mmstp.subnets.sized_calls`), so all that the check
has to give is a shape of the right rank: that of the tensor which the numbers would fill.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any


def let_einops_pass(supplying: Callable[[], bool]) -> None:
    """Has einops, where it is loaded, accept numbers of the dense network while sizes are supplied.

    Args:
        supplying: Whether they are at the moment.
    """
    einops = sys.modules.get('einops.einops')
    shapes_of = getattr(einops, '_reconstruct_from_shape', None)
    if einops is None or shapes_of is None or hasattr(shapes_of, 'mmstp_own'):
        return

    @functools.wraps(shapes_of)
    def filled(recipe: Any, shape: Any, axes_dims: Any) -> Any:
        try:
            return shapes_of(recipe, shape, axes_dims)
        except einops.EinopsError:
            if not supplying():
                raise
            return shapes_of(recipe, _filling(recipe, shape, axes_dims), axes_dims)

    filled.mmstp_own = shapes_of  # type: ignore[attr-defined]
    einops._reconstruct_from_shape = filled  # type: ignore[attr-defined]


def _filling(recipe: Any, shape: Any, axes_dims: Any) -> Any:
    """The shape nearest to a tensor's that the numbers fill, axis by axis."""
    lengths = list(recipe.elementary_axes_lengths)
    for name, length in axes_dims:
        lengths[recipe.axis_name2elementary_axis[name]] = length
    filled = []
    for size, (known, unknown) in zip(shape, recipe.input_composition_known_unknown, strict=True):
        product = math.prod(lengths[axis] for axis in known)
        filled.append(product * max(1, size // product) if unknown else product)
    return type(shape)(filled)
