"""The exported graph of a model, without what its forward keeps or the exporter prints."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import traceback
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from ..errors import TraceError
from ..foreign import as_if_run, pytree, registration_hooks_kept, schema_name
from .eval_state import eval_mode, kept_by_forward, kept_in_eval, overriding
from .known_shapes import KnownShapes
from .scratch import clones, copied


@dataclass(frozen=True)
class Trace:
    """The exported graph of a model in eval mode.

    ``module`` runs the graph: it takes the lifted tensors first, whose state-dict keys (or names of
    constants, which are in no state dict) are ``names``, then the leaves of the ``inputs``.
    ``live`` are modules that keep in eval mode what their parameters gave when it was entered. They
    were traced as in train mode, and have to run so as a part of themselves.
    """

    module: fx.GraphModule
    names: tuple[str, ...]
    constants: Mapping[str, Tensor]
    live: frozenset[str]
    inputs: tuple[Any, ...]

    def returned(self) -> list[Tensor]:
        """Tensors without values (fake ones), as the model returns them."""
        leaves = pytree.tree_leaves(self.module.graph.output_node().args)
        values = [leaf.meta['val'] for leaf in leaves if isinstance(leaf, fx.Node)]
        return [value for value in values if isinstance(value, Tensor)]

    def lifted(self, model: nn.Module) -> list[tuple[str, Tensor]]:
        """The tensors that the graph takes first, with their state-dict keys.

        Args:
            model: The traced model, or a copy of it with other values.
        """
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        held = {**self.constants, **own}
        known = first_keys(model)  # the trace may name a shared tensor by another key
        keys = [known.get(name, name) for name in self.names]
        return [(key, held[key]) for key in keys]


def first_keys(model: nn.Module) -> dict[str, str]:
    """For every parameter and buffer key the first key of the same (maybe shared) tensor."""
    named = itertools.chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    first: dict[int, str] = {}
    return {key: first.setdefault(id(tensor), key) for key, tensor in named}


def trace(model: nn.Module, inputs: Sequence[Any]) -> Trace:
    """Exports ``model(*inputs)``; the model is left as it was.

    What is traced is a copy with the model's parameters: the exporter leaves tensors without values
    behind in buffers and caches, and a forward may change its own.

    Args:
        model: Any module that `torch.export` can follow.
        inputs: Its positional arguments: tensors, numbers, None, and lists or dicts of these.

    Raises:
        TraceError: With the exporter's own message, if it cannot follow.
    """
    original, model = model, copied(model, share_parameters=True)
    given: tuple[Any, ...] = clones(tuple(inputs))
    _fill_caches(original, given)
    try:
        live = kept_in_eval(model)
        # What a forward keeps in eval mode for the next one is worked out by the dense network too.
        # Modules that drop it in train mode (so override it, and hold parameters) are asked to.
        asked = {m for m in overriding(model) if list(m.parameters(recurse=False))} - live
        if asked:
            live |= kept_by_forward(model, given) & asked
        program = _export(model, given, live)
    except Exception as error:
        raise TraceError(_failed(original, given, error)) from error
    _inline(program.graph_module)
    _drop_assertions(program.graph_module)
    _name_once(program.graph_module, model)
    specs = program.graph_signature.input_specs
    names = tuple(str(spec.target) for spec in specs if spec.kind != InputKind.USER_INPUT)
    paths = frozenset(path for path, module in model.named_modules() if module in live)
    return Trace(program.graph_module, names, dict(program.constants), paths, given)


def _fill_caches(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Runs a copy once: functions outside the model may keep tensors, which the exporter's are not.

    What it raises, the exporter will say better.
    """
    other = copied(model, share_parameters=True)
    with eval_mode(other), torch.no_grad(), contextlib.suppress(Exception):
        other(*clones(inputs))


def _export(
    model: nn.Module, inputs: Sequence[Any], live: Collection[nn.Module]
) -> torch.export.ExportedProgram:
    level, pages = logging.root.manager.disable, io.StringIO()
    try:
        logging.disable(logging.ERROR)  # before it fails, the exporter prints all that it has
        with (
            redirect_stdout(pages), redirect_stderr(pages), warnings.catch_warnings(),
            registration_hooks_kept(), eval_mode(model, live), torch.no_grad(), as_if_run(),
            KnownShapes(),
        ):  # fmt: skip
            # of what forwards keep in attributes: `kept_by_forward` finds out
            warnings.simplefilter('ignore')
            return torch.export.export(model, tuple(inputs), strict=False)
    finally:
        logging.disable(level)


def _failed(model: nn.Module, inputs: Sequence[Any], error: Exception) -> str:
    """What was the matter, where in the model's code, and what can be done."""
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in pytree.tree_leaves(inputs)]
    what = f'{type(model).__name__} cannot be traced with inputs of shape {shapes}: '
    others = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    stack = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in stack if not frame.filename.startswith(others)]
    place = f' at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})' if frames else ''
    if 'data-dependent' in str(error):
        return (
            f'{what}its forward goes by the values of a tensor{place}. Only what goes by shapes '
            'can be followed: write it with operators on tensors (torch.where), or leave that part '
            'out of the model that is pruned'
        )
    if 'data is not allocated yet' in str(error):
        return (
            f'{what}a compiled operator{place} says nothing to PyTorch of the shapes that it '
            'returns (mmcv has such: deformable convolutions). Only operators that are registered '
            'with torch.library and a fake implementation can be followed'
        )
    if 'k not in range' in str(error):
        return (
            f'{what}it takes more of something than there is{place}. Detectors with queries choose '
            'their num_queries among the positions of the image: enlarge input_shape'
        )
    return f'{what}{type(error).__name__}{place}: {error}'


def _inline(module: fx.GraphModule) -> None:
    """Puts regions of another autocast or gradient mode in place of the calls that wrap them."""
    for node in list(module.graph.nodes):
        name = operator_name(node) if node.op == 'call_function' else ''
        if not name.partition('::')[2].startswith('wrap_with_'):
            continue
        region, *inputs = [arg for arg in node.args if isinstance(arg, fx.Node)]
        inner = module.get_submodule(str(region.target))
        assert isinstance(inner, fx.GraphModule)
        _inline(inner)
        placeholders = [n for n in inner.graph.nodes if n.op == 'placeholder']
        copied: dict[fx.Node, Any] = dict(zip(placeholders, inputs, strict=True))
        with module.graph.inserting_before(node):
            outputs = module.graph.graph_copy(inner.graph, copied)
        for user in list(node.users):  # a region returns a tuple
            assert operator_name(user) == GETITEM and isinstance(outputs, (tuple, list))
            user.replace_all_uses_with(outputs[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    module.recompile()


def _drop_assertions(module: fx.GraphModule) -> None:
    """Takes out the exporter's checks of dtypes, which fail where the trace is run in float64."""
    for node in list(module.graph.nodes):
        if node.op == 'call_function' and operator_name(node) == 'aten::_assert_tensor_metadata':
            module.graph.erase_node(node)
    module.recompile()


def _name_once(module: fx.GraphModule, model: nn.Module) -> None:
    """Modules that the model knows by several paths get the first, as in ``named_modules``."""
    first = {inner: path for path, inner in model.named_modules()}
    known = {path: first[inner] for path, inner in model.named_modules(remove_duplicate=False)}
    for node in module.graph.nodes:
        if stack := node.meta.get('nn_module_stack'):
            node.meta['nn_module_stack'] = {
                key: (known.get(path, path), kind) for key, (path, kind) in stack.items()
            }


# --- what nodes say about themselves --------------------------------------------------------------

GETITEM = '_operator::getitem'


def operator_name(node: fx.Node) -> str:
    """The qualified name of a node's operator: ``'aten::conv2d'``.

    Without the overload, and without the mark of in-place variants (``'aten::relu_'``). A function
    of Python is named after its module.
    """
    name = schema_name(node.target)
    if name is None:
        function: Any = node.target
        return f'{getattr(function, "__module__", "")}::{getattr(function, "__name__", function)}'
    return name if '::__' in name else name.removesuffix('_')


def module_stack(node: fx.Node) -> dict[str, str]:
    """The modules a node was called in, outermost first: call key to module path."""
    stack = node.meta.get('nn_module_stack') or {}
    return {key: path for key, (path, _) in stack.items()}


def caller(node: fx.Node) -> str:
    """The path of the module whose own code called the operator."""
    return next(reversed(module_stack(node).values()), '')


def output_shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's (first) output, from the trace."""
    value = node.meta['val']
    first = value[0] if isinstance(value, (tuple, list)) else value
    return tuple(first.shape)
