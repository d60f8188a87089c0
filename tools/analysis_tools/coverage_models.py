"""The networks that `coverage.py` measures: a file for each library, which is imported when asked.

No library is imported before its networks are asked for: they are large, and most are optional.
"""

from __future__ import annotations

import coverage_mmpretrain
import coverage_timm
import coverage_torchvision
import coverage_transformers
import coverage_vit_pytorch
from coverage_network import Network

_NETWORKS = {
    'mmpretrain': coverage_mmpretrain.networks,
    'torchvision': coverage_torchvision.networks,
    'timm': coverage_timm.networks,
    'transformers': coverage_transformers.networks,
    'vit_pytorch': coverage_vit_pytorch.networks,
}
SOURCES = tuple(_NETWORKS)
# whose versions are named above the table of a library, besides its own
BESIDE = {'mmpretrain': ('timm',), 'timm': ('torchvision',), 'vit_pytorch': ('einops',)}


def networks(source: str) -> list[Network]:
    """All networks of a library.

    Raises:
        ImportError: If the library is not installed.
    """
    return _NETWORKS[source]()
