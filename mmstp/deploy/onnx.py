"""ONNX files of an export, compared with PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..analysis.eval_state import eval_mode
from ..atomic_files import whole_file
from ..errors import ExportError
from ..foreign import pytree
from ..stp.two_stages import dense_part
from .export import BACKBONE, load_backbone, read_description, reload

TOLERANCE = 1e-5  # relative to the largest output


def write_onnx(directory: str | Path) -> dict[Path, float]:
    """Writes ``compact.onnx``, images to logits, and ``backbone.onnx``, images to feature maps.

    Of a detector ``compact.onnx`` gives what its dense heads do: in two stages those of the first.
    Both take one image of the size that the network was pruned for.

    Args:
        directory: Of the export.

    Returns:
        By file, by how much ONNX Runtime and PyTorch differ on a random image, relative to the
        largest output.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is missing.
        ExportError: If they differ by more than `TOLERANCE`, or the folder holds no export.
    """
    directory = Path(directory)
    networks = {directory / 'compact.onnx': dense_part(reload(directory))}
    if (directory / BACKBONE).is_file():
        networks[directory / 'backbone.onnx'] = load_backbone(directory)
    image = torch.zeros(1, *read_description(directory)['input_shape'])
    return {path: export_onnx(path, network, image) for path, network in networks.items()}


@torch.no_grad()
def export_onnx(path: Path, network: nn.Module, like: Tensor) -> float:
    """Writes a static network that takes inputs ``like`` this one; as `write_onnx`, of any."""
    import onnxruntime

    content = as_onnx(network, like)
    with eval_mode(network):
        images = torch.randn(like.shape, generator=torch.Generator().manual_seed(0))
        expected = [x for x in pytree.tree_leaves(network(images)) if isinstance(x, Tensor)]
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    difference = max(
        float((torch.from_numpy(a) - b).abs().max() / b.abs().max())
        for a, b in zip(outputs, expected, strict=True)
    )
    if not difference <= TOLERANCE:
        raise ExportError(
            f'{path.name}: ONNX Runtime differs from PyTorch by {difference:.1e} of the largest '
            f'output, more than {TOLERANCE:.0e}'
        )
    with whole_file(path) as file:
        file.write(content)
    return difference


@torch.no_grad()
def as_onnx(network: nn.Module, like: Tensor) -> bytes:
    """The content of the ONNX file of a static network that takes inputs ``like`` this one."""
    with eval_mode(network), warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # of torch to itself
        program = torch.onnx.export(network, (like,), dynamo=True, verbose=False)
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content
