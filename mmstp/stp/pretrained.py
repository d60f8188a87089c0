"""The weights of a dense network that a search starts from."""

from __future__ import annotations

from mmengine.runner import CheckpointLoader
from torch import nn

from ..checkpoints import differences
from ..errors import CheckpointError
from .options import not_finite


def load_pretrained(network: nn.Module, path: str) -> None:
    """Loads the checkpoint of ``model.pretrained``.

    Args:
        network: The dense network.
        path: A file or an address.

    Raises:
        CheckpointError: If its weights do not fit the network, or are not finite.
    """
    content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    weights = content.get('state_dict', content)
    if found := differences(network, weights):
        raise CheckpointError(
            f'model.pretrained={path!r} does not fit {type(network).__name__}:'
            + ''.join(f'\n  {line}' for line in found[:5])
        )
    if bad := not_finite(network, weights):
        raise CheckpointError(
            f'model.pretrained={path!r}: {bad[0]} holds numbers that are not finite'
        )
    network.load_state_dict(weights, strict=False)  # only batch counters can be absent
