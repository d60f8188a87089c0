"""Whether a config is the one of the run that wrote a checkpoint.

MMEngine keeps the run's config in each of its checkpoints, as text. What the search depends on is
read from there as plain values; nothing of the text is executed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger

from ..config_fields import default_of, options_of
from ..errors import CheckpointError
from ..search.space import SearchSpace
from ..stp.algorithm import STP
from ..stp.hooks.pool import STATE
from ..stp.pool import ArchitecturePool
from ..stp.search_state import has_pools

_OWN = ('target', 'metric', 'tolerance', 'input_shape')
_POOL = ('sampling', 'alpha', 'per_rank')
_POOL_SIZE = 1000  # the default, which `STP` keeps to itself
# options that change how a network is trained, not what it computes
_TRAINING = {
    *(
        'init_cfg',
        'pretrained',
        'train_cfg',
        'test_cfg',
        'batch_augments',
        'loss',
        'topk',
        'cal_acc',
    ),
    *('frozen_stages', 'norm_eval', 'with_cp'),
}


def search_of(content: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """The state of the search in a checkpoint; a `CheckpointError` where there is none."""
    state: Any = content.get(STATE)
    if not has_pools(state):
        raise CheckpointError(
            f'checkpoint {str(path)!r} was not written by an STP run: it holds no state of the '
            'search'
        )
    return state


def refuse_other_run(config: Config, content: Mapping[str, Any], path: str | Path) -> None:
    """Raises a `CheckpointError` where a checkpoint's run did not prune, or not as a config does.

    Budget, input shape, search space and pool are compared, the network and how images are
    normalised. Another schedule, other data, another loss or its weight are none of this function's
    business.

    Args:
        config: Of an STP run.
        content: What `mmstp.checkpoints.read_checkpoint` gave.
        path: Of the checkpoint, for messages.
    """
    search_of(content, path)
    meta = content.get('meta')
    text = meta.get('cfg') if isinstance(meta, Mapping) else None
    text = text if isinstance(text, str) else ''
    model = _assigned(text, 'model')
    if not isinstance(model, Mapping) or 'target' not in model:
        MMLogger.get_instance('mmstp').warning(
            f'checkpoint {str(path)!r} does not hold the config of its run (meta.cfg): whether '
            'budget, search space and pool are those of this config is not known'
        )
        return
    there = _compared(model) | _network(model, _assigned(text, 'data_preprocessor'))
    own = config.model.to_dict()
    here = _compared(own) | _network(own, config.get('data_preprocessor'))
    found = [
        f'  {name} = {there.get(name)!r} in the checkpoint, {here.get(name)!r} in the config'
        for name in dict.fromkeys([*there, *here])
        if there.get(name) != here.get(name)
    ]
    if found:
        raise CheckpointError(
            f'checkpoint {str(path)!r} is of a run with another config:\n'
            + '\n'.join(found)
            + '\nGive the config of that run, which its work dir holds, with the same --cfg-options'
        )


def _compared(model: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a search this one, by field, with the defaults of what is not said."""
    space, pool = model.get('space') or {}, model.get('pool') or {}
    found = {f'model.{name}': model.get(name, default_of(STP, name)) for name in _OWN}
    for name in options_of(SearchSpace):
        found[f'model.space.{name}'] = space.get(name, default_of(SearchSpace, name))
    found['model.pool.size'] = pool.get('size', _POOL_SIZE)
    for name in _POOL:
        found[f'model.pool.{name}'] = pool.get(name, default_of(ArchitecturePool, name))
    found['model.target'] = _in_one_order(found['model.target'])
    found['model.space.widths'] = _with_the_dense(found['model.space.widths'])
    found['model.space.fix'] = sorted(found['model.space.fix'] or ())
    found['model.space.stages'] = found['model.space.stages'] or {}
    return {name: _plain(value) for name, value in found.items()}


def _network(model: Mapping[str, Any], preprocessor: Any) -> dict[str, Any]:
    """The options of the classifier and of its preprocessor, by field."""
    found = dict(_leaves(model.get('model'), 'model.model'))
    return found | dict(_leaves(preprocessor, 'data_preprocessor'))


def _leaves(value: Any, field: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in _TRAINING:
                yield from _leaves(inner, f'{field}.{name}')
    elif field.endswith('.type'):  # 'ResNet', 'mmpretrain.models.ResNet' or the class
        name = value.__name__ if isinstance(value, type) else str(value)
        yield field, name.rpartition('.')[2]
    elif value is not None:  # as if it were not said
        yield field, _plain(value)


def _in_one_order(target: Any) -> Any:
    """Several budgets are the same in any order, and a list of one is its entry."""
    if not isinstance(target, (list, tuple)):
        return target
    return target[0] if len(target) == 1 else sorted(target, key=str)


def _with_the_dense(widths: Any) -> Any:
    """Widths in any order, with 1.0, which is always among them."""
    return sorted({*widths, 1.0}) if isinstance(widths, (list, tuple)) else widths


def _plain(value: Any) -> Any:
    """Tuples for lists, which configs take alike."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _assigned(text: str, name: str) -> Any:
    """What a config's text assigns to a name, if it is written with plain values; else None."""
    try:
        for statement in ast.parse(text).body:
            if not isinstance(statement, ast.Assign):
                continue
            target = statement.targets[0]
            if isinstance(target, ast.Name) and target.id == name:
                return _value(statement.value)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        pass
    return None


def _value(node: ast.AST) -> Any:
    """As `ast.literal_eval`, with ``dict(…)``; a `ValueError` for any other call or name."""
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id == 'dict'
        if not named or node.args or not all(keyword.arg for keyword in node.keywords):
            raise ValueError(ast.dump(node.func))
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(inner) for inner in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_value(key) if key is not None else None for key in node.keys]
        return dict(zip(keys, map(_value, node.values), strict=True))
    return ast.literal_eval(node)
