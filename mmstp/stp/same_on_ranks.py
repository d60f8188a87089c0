"""Whether all ranks of a run hold the same: compared by hashes, in one message of a few numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_gather


def refuse_differing(fields: Mapping[str, Any]) -> None:
    """Compares fields over the ranks, all of which have to call this at the same time.

    Args:
        fields: Plain values by name, the same names on every rank.

    Raises:
        RuntimeError: On all ranks, naming those that hold something else than rank 0, and what.
    """
    own = torch.tensor([_hash(value) for value in fields.values()])
    first, *others = (hashes.tolist() for hashes in all_gather(own))
    found = []
    for rank, hashes in enumerate(others, start=1):
        differing = [name for name, a, b in zip(fields, first, hashes, strict=True) if a != b]
        if differing:
            found.append(f'rank {rank} in {", ".join(differing)}')
    if found:
        raise RuntimeError(
            f'the ranks do not run the same search: {"; ".join(found)} (compared with rank 0). '
            'They need the same code, config, checkpoint and seed, and nothing but PoolHook may '
            'change the pool'
        )


def _hash(value: Any) -> int:
    digest = hashlib.blake2b(json.dumps(value).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big', signed=True)
