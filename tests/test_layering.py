"""Imports go one way, and stand at the top."""

import ast
import functools
from pathlib import Path

import pytest

import mmstp

ROOT = Path(mmstp.__file__).parent
# from what knows nothing to what knows everything; what shares a line does not import each other
LAYERS = [
    {'version', 'errors', 'foreign'},
    {'architecture', 'atomic_files', 'config_fields'},
    {'analysis'},
    {'search'},
    {'subnets'},
    {'registry', 'checkpoints'},
    {'stp', 'backbones', 'datasets'},
    {'deploy'},
    {'cli'},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
# imports inside a function, each with its reason
LOCAL = {
    ('subnets.cut', 'torch.utils.flop_counter'): 'imports triton, or warns that there is none',
    ('datasets.sklearn_digits', 'sklearn.datasets'): 'an optional dependency, of one dataset',
    ('deploy.detector_check', 'mmdet.structures'): 'an optional dependency, of detectors',
    ('stp.whole_images', 'mmdet.structures'): 'an optional dependency, of detectors',
    ('deploy.onnx', 'onnxruntime'): 'an optional dependency, of one file format',
    ('deploy.timing', 'onnxruntime'): 'an optional dependency, of one backend',
    ('deploy.timing', 'openvino'): 'an optional dependency, of one backend',
}
MODULES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts): path
    for path in sorted(ROOT.rglob('*.py'))
}


@functools.cache
def tree(module):
    return ast.parse(MODULES[module].read_text())


def imported(module, node):
    """The absolute names that an import statement of a module means."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not node.level:
        return [node.module]
    package = ['mmstp', *module.split('.')][: -node.level]
    base = '.'.join([*package, node.module] if node.module else package)
    return [base] if node.module else [f'{base}.{alias.name}' for alias in node.names]


def own_imports(module):
    """The modules of this package that a module imports, as in MODULES."""
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported(module, node):
                parts = name.split('.')
                if parts[0] == 'mmstp':
                    inner = '.'.join(parts[1:])
                    names.add(inner if inner in MODULES else f'{inner}.__init__'.lstrip('.'))
    return names


def layer_of(module):
    return module.split('.')[0]


def test_every_module_has_its_layer():
    assert {layer_of(module) for module in MODULES} - {'__init__'} == set(LEVEL)


@pytest.mark.parametrize('module', [module for module in MODULES if module != '__init__'])
def test_imports_go_down(module):
    here = layer_of(module)
    for other in own_imports(module):
        there = layer_of(other)
        assert there in LEVEL, f'{module} imports {other}'
        inside = here == there
        assert inside or LEVEL[there] < LEVEL[here], f'{module} imports {other}'


def test_no_circles():
    """Within the sub-packages too, where all is one layer."""
    done, under_way = set(), []

    def visit(module):
        assert module not in under_way, ' → '.join([*under_way, module])
        if module in done:
            return
        under_way.append(module)
        for other in own_imports(module):
            visit(other)
        under_way.pop()
        done.add(module)

    for module in MODULES:
        visit(module)
    assert done == set(MODULES)


def test_imports_stand_at_the_top():
    """Not in a function, where a circle could hide; what is listed has a reason."""
    found = set()
    for module in MODULES:
        for function in ast.walk(tree(module)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                for node in ast.walk(function):
                    if isinstance(node, ast.Import | ast.ImportFrom):
                        found |= {(module, name) for name in imported(module, node)}
    assert found == set(LOCAL)


def test_everything_public_exists():
    assert len(set(mmstp.__all__)) == len(mmstp.__all__)
    assert all(hasattr(mmstp, name) for name in mmstp.__all__)
