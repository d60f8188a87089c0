"""Checkpoints: read without running code, and an error where their weights do not fit."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_http, load_from_local
from torch import Tensor, nn

from .errors import CheckpointError
from .foreign import before_loading

# PyTorch's own switch for files that are trusted
TRUSTED = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
_FORCED = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_TRUE = ('1', 'y', 'yes', 'true')


def _method(owner: Any, name: str) -> Any:
    """Stands for `getattr` in checkpoints: MMEngine's logs refer to four methods of their class."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise UnpicklingError(f'Unsupported global: GLOBAL builtins.getattr of {name!r}')


# What MMEngine's runner adds to tensors and plain types: its logs, which hold arrays of numbers.
_ALLOWED: list[Any] = [
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes['All']},
    (_method, 'builtins.getattr'),
    *(
        (np.zeros(0).__reduce__()[0], f'numpy.{core}.multiarray._reconstruct')
        for core in ('core', '_core')  # NumPy 1 and 2
    ),
    *(
        (np.float64(0).__reduce__()[0], f'numpy.{core}.multiarray.scalar')
        for core in ('core', '_core')
    ),
]


def read_checkpoint(path: str | Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """The content of a checkpoint, which has to be tensors, plain types and MMEngine's logs.

    Nothing else is loaded, so that no code of the file runs, unless `TRUSTED` is set in the
    environment.

    Raises:
        CheckpointError: If there is no such file, it is something else, is cut off, or holds other
            objects; the message names the file.
    """
    name = f'checkpoint {str(path)!r}'
    file = Path(path).expanduser()
    if not file.is_file():
        raise CheckpointError(f'{name} is {"a folder" if file.is_dir() else "not a file"}')
    trusted = os.environ.get(TRUSTED, '0') in _TRUE
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(file, map_location=map_location, weights_only=not trusted)
    except Exception as error:  # what PyTorch says of other files is not one kind of error
        if found := re.search(r'GLOBAL (\S+)', str(error)):
            raise CheckpointError(
                f'{name} holds {found[1]}, which is neither a tensor nor a plain type: loading it '
                f'could run code of the file, so it was not loaded. If you trust the file, set '
                f'{TRUSTED}=1 in the environment'
            ) from error
        raise CheckpointError(f'{name} cannot be read: {_not_readable(file, error)}') from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{name} holds a {type(content).__name__}; expected a dict with weights'
        )
    return content


def _not_readable(file: Path, error: Exception) -> str:
    if isinstance(error, PermissionError) or not os.access(file, os.R_OK):
        return 'no permission'
    with file.open('rb') as opened:
        start = opened.read(4)
    if not start:
        return 'it is empty'
    if start == b'PK\x03\x04' and not zipfile.is_zipfile(file):
        return 'it is cut off'
    return f'it is damaged, or no file that torch.save wrote ({type(error).__name__})'


def weights_of(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The weights in what `read_checkpoint` gave: under ``state_dict``, or the content itself.

    Raises:
        CheckpointError: If they are not tensors by name, or hold numbers that are not finite.
    """
    weights = content.get('state_dict', content)
    named = isinstance(weights, dict) and all(isinstance(key, str) for key in weights)
    if not named or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"checkpoint {str(path)!r} holds no weights: expected 'state_dict', tensors by name; "
            f'it has {", ".join(map(str, list(content)[:8])) or "nothing"}'
        )
    refuse_not_finite(weights, f'checkpoint {str(path)!r}')
    return dict(weights)


def dataset_meta_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a run noted of its data (``classes``), by the content of its checkpoint; or nothing."""
    meta = content.get('meta')
    found = meta.get('dataset_meta') if isinstance(meta, dict) else None
    return dict(found) if isinstance(found, dict) else {}


def refuse_not_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raises a `CheckpointError` for the first tensor that holds NaN or infinity."""
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise CheckpointError(
                f'{where}: {key} holds {count} of {tensor.numel()} numbers that are not finite '
                '(the training diverged); take an earlier checkpoint'
            )


@contextmanager
def plain_loading() -> Iterator[None]:
    """Inside, MMEngine loads checkpoints as `read_checkpoint` does, in runners and `init_cfg` too.

    Its own loader falls back to unpickling whatever a file holds.
    """

    def from_address(filename: str, map_location: Any = None, **options: Any) -> Any:
        before = os.environ.get(_FORCED)
        if os.environ.get(TRUSTED, '0') not in _TRUE:
            os.environ[_FORCED] = '1'
        try:
            with torch.serialization.safe_globals(_ALLOWED):
                return load_from_http(filename, map_location, **options)
        finally:
            os.environ.pop(_FORCED, None)
            if before is not None:
                os.environ[_FORCED] = before

    def from_file(filename: str, map_location: Any = None) -> dict[str, Any]:
        content = read_checkpoint(filename, map_location)
        if isinstance(content.get('meta'), dict):
            # MMEngine's runner executes this text when it resumes (its own checkpoints have `cfg`)
            content['meta'].pop('config', None)
        return content

    # MMEngine names them in its log, as «load_from_…»
    from_address.__name__, from_file.__name__ = 'load_from_http', 'load_from_local'
    register = CheckpointLoader.register_scheme
    addresses = ('http://', 'https://')
    register(addresses, from_address, force=True)
    register('', from_file, force=True)
    try:
        yield
    finally:
        register(addresses, load_from_http, force=True)
        register('', load_from_local, force=True)


def require_fit(
    module: nn.Module,
    hint: str = '',
    describe: Callable[[Mapping[str, Any]], str] | None = None,
    optional: Collection[str] = (),
    extra: bool = False,
) -> None:
    """Makes every way of loading weights into ``module`` fail unless they fit exactly.

    It holds for `torch.nn.Module.load_state_dict` and for MMEngine's loaders, strict or not, also
    where the module is part of a larger one. ``describe`` says what network a state dict is of, and
    ``optional`` keys may be missing, or be there though the network has no such tensor; with
    ``extra`` any key may be there.
    """
    fit = _Fit(hint, describe, frozenset(optional), extra)
    before_loading(module, fit.note, first=True)
    before_loading(module, fit.check)


@dataclass
class _Fit:
    """What `require_fit` is given; an object, so that a module with its hooks pickles."""

    hint: str
    describe: Callable[[Mapping[str, Any]], str] | None
    optional: frozenset[str]
    extra: bool = False
    before: frozenset[str] = frozenset()  # the keys that came, ahead of the network's own hooks

    def note(self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """Runs before the network's own hooks."""
        keys = (key for key in state_dict if key.startswith(prefix))
        self.before = frozenset(key.removeprefix(prefix) for key in keys)

    def check(self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """Runs behind them."""
        given = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        if self.extra:
            known = module.state_dict().keys()
            given = {key: value for key, value in given.items() if key in known}
        # the network's own hooks may fit a table to another size, or take one away to work it out
        found = differences(module, given, {*self.optional, *(self.before - given.keys())})
        if not found:
            return
        where = f' ({prefix[:-1]})' if prefix else ''
        lines = [f'the weights do not fit this {type(module).__name__}{where}:']
        lines += [f'  {line}' for line in found[:5]]
        if len(found) > 5:
            lines.append(f'  … and {len(found) - 5} more')
        if self.describe is not None:
            own = self.describe(module.state_dict())
            lines.append(f'This network is {own}, the weights are {self.describe(given)}.')
        if start := _prefix_of(module, given, self.optional):
            lines.append(f'Their keys begin with {start!r}: load them with prefix={start!r}.')
        raise CheckpointError('\n'.join([*lines, self.hint]).rstrip())


def _prefix_of(
    module: nn.Module, given: Mapping[str, Any], optional: Collection[str]
) -> str | None:
    """What stands before the keys of weights that would fit without it."""
    own = next(iter(module.state_dict()), '')
    for key in given:
        start = key.removesuffix(own)
        if start and start != key and start.endswith('.'):
            inner = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
            if not differences(module, inner, optional):
                return start
    return None


def differences(
    module: nn.Module, given: Mapping[str, Any], optional: Collection[str] = ()
) -> list[str]:
    """What keeps a state dict from fitting a module, one line each, in the module's order."""
    own: dict[str, Tensor] = dict(module.state_dict())
    found = []
    for key, tensor in own.items():
        shape = tuple(tensor.shape)
        if key not in given:
            # counters are absent from old checkpoints
            if key not in optional and not key.endswith('num_batches_tracked'):
                found.append(f'{key}: missing in the checkpoint, {shape} here')
        elif tuple(given[key].shape) != shape:
            found.append(f'{key}: {tuple(given[key].shape)} in the checkpoint, {shape} here')
    found += [
        f'{key}: {tuple(getattr(value, "shape", ()))} in the checkpoint, not here'
        for key, value in given.items()
        if key not in own and key not in optional
    ]
    return found
