"""What the nodes of an exported graph say about themselves."""

from __future__ import annotations

import io
import logging
import operator
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
from .eval_state import caching, eval_mode, overriding


def module_stack(node: fx.Node) -> dict[str, str]:
    """The modules a node was called in, outermost first: call key to module path."""
    stack = node.meta.get('nn_module_stack') or {}
    return {key: path for key, (path, _) in stack.items()}


def caller(node: fx.Node) -> str:
    """The path of the module whose own code called the operator."""
    return next(reversed(module_stack(node).values()), '')


def operator_name(node: fx.Node) -> str:
    """The operator's name without namespace, overload and the mark of in-place variants."""
    if node.target is operator.getitem:
        return 'getitem'
    schema = getattr(node.target, '_schema', None)
    name = schema.name.split('::')[-1] if schema else getattr(node.target, '__name__', '?')
    return name if name.startswith('__') else name.removesuffix('_')


def output_shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's (first) output, from the trace."""
    value = node.meta['val']
    first = value[0] if isinstance(value, (tuple, list)) else value
    return tuple(first.shape)


@dataclass(frozen=True)
class Trace:
    """The exported graph of a model in eval mode.

    Attributes:
        module: Runs the graph; takes ``names`` as its first inputs, then the model's inputs.
        names: The state-dict key (or name of a constant) of every lifted tensor, in order.
        constants: Tensors that are in no state dict, by name.
        live: Modules that keep in eval mode what their parameters gave when it was entered. They
            were traced as in train mode, and have to run so as a part of themselves.
    """

    module: fx.GraphModule
    names: tuple[str, ...]
    constants: Mapping[str, Tensor]
    live: frozenset[str]


def trace(model: nn.Module, inputs: Sequence[Tensor]) -> Trace:
    """Exports ``model(*inputs)``; the model is left as it was.

    Raises:
        TraceError: If the export fails; the message holds the exporter's own.
    """
    live = caching(model)
    # What a forward keeps in eval mode for the next one is worked out by the dense network too.
    # Modules that drop it in train mode (so override it, and hold parameters) are asked to.
    asked = [m for m in overriding(model) if m._parameters and m not in live]
    if asked:
        live |= kept_by_forward(model, inputs).intersection(asked)
    program = _export(model, inputs, live)
    _inline(program.graph_module)
    _drop_assertions(program.graph_module)
    names = tuple(
        str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind != InputKind.USER_INPUT
    )
    return Trace(
        program.graph_module,
        names,
        dict(program.constants),
        frozenset(path for path, module in model.named_modules() if module in live),
    )


def kept_by_forward(model: nn.Module, inputs: Sequence[Tensor]) -> set[nn.Module]:
    """The modules that keep tensors of a forward in eval mode for the next one.

    They keep them: the exporter hides what a forward keeps, and traces how it is worked out.

    Raises:
        TraceError: If the forward fails.
    """
    try:
        with eval_mode(model), torch.no_grad():
            states = {module: _State(module) for module in model.modules()}
            model(*inputs)
            return {module for module, state in states.items() if state.changed()}
    except Exception as error:
        raise TraceError(_failed(model, inputs, error)) from error


def _export(
    model: nn.Module, inputs: Sequence[Tensor], live: Collection[nn.Module]
) -> torch.export.ExportedProgram:
    level, pages = logging.root.manager.disable, io.StringIO()
    try:
        logging.disable(logging.WARNING)  # before it fails, the exporter prints all that it has
        with (
            redirect_stdout(pages), redirect_stderr(pages), warnings.catch_warnings(),
            eval_mode(model, live), torch.no_grad(),
        ):  # fmt: skip
            # of what forwards keep in attributes: `kept_by_forward` finds out
            warnings.simplefilter('ignore')
            return torch.export.export(model, tuple(inputs), strict=False)
    except Exception as error:
        raise TraceError(_failed(model, inputs, error)) from error
    finally:
        logging.disable(level)


def _failed(model: nn.Module, inputs: Sequence[Tensor], error: Exception) -> str:
    """What was the matter, where in the model's code, and what can be done."""
    what = (
        f'{type(model).__name__} cannot be traced with inputs of shape '
        f'{[tuple(x.shape) for x in inputs]}: '
    )
    torch_root = str(Path(torch.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(torch_root) and frame.filename != __file__
    ]
    place = f' at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})' if frames else ''
    if 'data-dependent' in str(error):
        return (
            f'{what}its forward goes by the values of a tensor{place}. Only what goes by shapes '
            'can be followed: write it with operators on tensors (torch.where), or leave that part '
            'out of the model that is pruned'
        )
    return f'{what}{type(error).__name__}{place}: {error}'


def _inline(module: fx.GraphModule) -> None:
    """Puts regions of another autocast or gradient mode in place of the calls that wrap them."""
    for node in list(module.graph.nodes):
        if node.op != 'call_function' or not operator_name(node).startswith('wrap_with_'):
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
            assert operator_name(user) == 'getitem' and isinstance(outputs, (tuple, list))
            user.replace_all_uses_with(outputs[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    module.recompile()


def _drop_assertions(module: fx.GraphModule) -> None:
    """Takes out the exporter's checks of dtypes, which fail where the trace is run in float64."""
    for node in list(module.graph.nodes):
        if node.op == 'call_function' and operator_name(node) == '_assert_tensor_metadata':
            module.graph.erase_node(node)
    module.recompile()


class _State:
    """What a module holds beside parameters and modules, buffers by identity."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._held = {
            name: dict(value) if type(value) is dict else value
            for name, value in vars(module).items()
            if self._is_state(name)
        }

    @staticmethod
    def _is_state(name: str) -> bool:
        return name == '_buffers' or not name.startswith('_')

    def changed(self) -> list[str]:
        """What now is, or holds, another tensor."""
        return [
            name
            for name, value in vars(self._module).items()
            if self._is_state(name) and _other_tensors(value, self._held.get(name))
        ]


def _other_tensors(now: Any, before: Any) -> bool:
    if type(now) is dict:
        known = before if type(before) is dict else {}
        return any(_other_tensors(value, known.get(key)) for key, value in now.items())
    return isinstance(now, Tensor) and now is not before
