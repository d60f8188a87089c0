"""What a runner trains."""

from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..errors import ModelError
from .algorithm import STP


def unwrapped(runner: Runner) -> Any:
    """The runner's model without its wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def stp_of(runner: Runner) -> STP:
    """The same, which has to be an `STP`; else a `ModelError`."""
    model = unwrapped(runner)
    if not isinstance(model, STP):
        raise ModelError(
            f'the hooks of mmstp need model.type to be mmstp.STP, not {type(model).__name__}'
        )
    return model
