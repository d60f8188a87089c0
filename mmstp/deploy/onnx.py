"""ONNX files of an export: written, compared with PyTorch, and run in the place of its network."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.onnx import OnnxExporterError

from ..analysis.eval_state import eval_mode
from ..analysis.known_shapes import KnownShapes
from ..atomic_files import whole_file
from ..errors import ExportError
from ..foreign import pytree
from ..stp.detection import heads_of
from ..stp.tasks import is_detector
from ..stp.two_stages import dense_part
from ..stp.whole_images import masks_padding
from .export import BACKBONE, load_backbone, read_description, reload

TOLERANCE = 1e-5  # relative to the largest output
AXES = {0: 'batch', 2: 'height', 3: 'width'}  # of images, that a file may leave open


@dataclass(frozen=True)
class OnnxFile:
    """What is known of a file that was written.

    Attributes:
        difference: Between ONNX Runtime and PyTorch on random images, relative to the largest
            output.
        free: Which of `AXES` may have any size; the others are as large as in the trace.
    """

    difference: float
    free: tuple[str, ...]


def write_onnx(directory: str | Path) -> dict[Path, OnnxFile]:
    """Writes ``compact.onnx``, images to logits, and ``backbone.onnx``, images to feature maps.

    Of a detector ``compact.onnx`` gives what its dense heads do; in two stages the feature maps,
    and what the head of the first does with them.

    Args:
        directory: Of the export.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is missing.
        ExportError: If they differ by more than `TOLERANCE`, or the folder holds no export.
    """
    directory = Path(directory)
    networks = {directory / 'compact.onnx': dense_part(reload(directory))}
    if (directory / BACKBONE).is_file():
        networks[directory / 'backbone.onnx'] = load_backbone(directory)
    description = read_description(directory)
    image, sizes = torch.zeros(1, *description['input_shape']), description['one_size'] is None
    return {path: export_onnx(path, network, image, sizes) for path, network in networks.items()}


@torch.no_grad()
def export_onnx(path: Path, network: nn.Module, like: Tensor, sizes: bool = True) -> OnnxFile:
    """Writes a network; as `write_onnx`, of any.

    Args:
        path: Of the file.
        network: Takes images.
        like: One image, of the size that is tried.
        sizes: Whether it may take images of other sizes.
    """
    with eval_mode(network):
        for free in (tuple(AXES), (0,), ()) if sizes else ((0,), ()):
            images = random_images(like.shape[1:], 2 if 0 in free else 1)  # 1 stays a constant
            try:
                content = as_onnx(network, images, free)
            except OnnxExporterError:  # of a network that puts sizes into tensors, they are fixed
                if free:
                    continue
                raise
            run = session_of(content)
            difference = difference_of(run(images), network(images))
            if not difference <= TOLERANCE:
                raise ExportError(
                    f'{path.name}: ONNX Runtime differs from PyTorch by {difference:.1e} of the '
                    f'largest output, more than {TOLERANCE:.0e}'
                )
            # PyTorch takes sizes that a network works out in Python for fixed, and does not say so
            if _runs_at_other_sizes(run, network, like, free):
                break
    with whole_file(path) as file:
        file.write(content)
    return OnnxFile(difference, tuple(AXES[axis] for axis in free))


@torch.no_grad()
def as_onnx(network: nn.Module, images: Tensor, free: Sequence[int] = ()) -> bytes:
    """The content of the ONNX file of a network that takes inputs like these images.

    Args:
        network: Takes images.
        images: Shape (batch, channels, height, width).
        free: Axes that may have another size, as far as PyTorch can follow them.
    """
    with eval_mode(network), warnings.catch_warnings(), KnownShapes():
        warnings.simplefilter('ignore', FutureWarning)  # of torch to itself
        program: Any = torch.onnx.export(
            network, (images,), dynamo=True, verbose=False,
            input_names=['images'], output_names=names_of(network(images)),
            dynamic_shapes=(dict.fromkeys(free, Dim.AUTO),) if free else None,
        )  # fmt: skip
    content: bytes = program.model_proto.SerializeToString()
    return content


def names_of(outputs: Any) -> list[str]:
    """Names of outputs: where each lies in what the network returns.

    That of a single tensor is ``output``; ``output_1_0`` is the first of the second list.
    """
    paths, _ = pytree.tree_flatten_with_path(outputs)
    return [
        '_'.join(['output', *re.findall(r'\w+', pytree.keystr(path))])
        for path, value in paths
        if isinstance(value, Tensor)
    ]


def _runs_at_other_sizes(
    run: Callable[[Tensor], list[Tensor]], network: nn.Module, like: Tensor, free: Sequence[int]
) -> bool:
    """Whether a file is right where axes are larger than in the trace."""
    number, *shape = (size + 32 * (axis in free) for axis, size in enumerate(like.shape))
    images = random_images(shape, min(number, 3))
    try:
        return difference_of(run(images), network(images)) <= TOLERANCE
    except ExportError:
        return False


def random_images(shape: Sequence[int], number: int) -> Tensor:
    """The same every time; of shape (number, *shape)."""
    return torch.randn((number, *shape), generator=torch.Generator().manual_seed(0))


def session_of(content: bytes | str, threads: int = 0) -> Callable[[Tensor], list[Tensor]]:
    """Runs a file, or what one holds, on the CPU: images to all of its outputs.

    Args:
        content: The path of a file, or its bytes.
        threads: Of an operator; 0: one for each core.

    Raises:
        ImportError: If onnxruntime is missing.
        ExportError: If the file is not one, or does not take the images.
    """
    import onnxruntime

    source = repr(content) if isinstance(content, str) else 'the file'

    def checked(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:  # those of ONNX Runtime have no base of their own
            raise ExportError(f'{source}: {error}') from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what it logs is in the error that it raises
    providers = ['CPUExecutionProvider']
    session = checked(lambda: onnxruntime.InferenceSession(content, options, providers=providers))
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        outputs = checked(lambda: session.run(None, {name: images.numpy()}))
        return [torch.from_numpy(x) for x in outputs]

    return run


def difference_of(found: Sequence[Tensor], expected: Any) -> float:
    """The largest of outputs, relative to the largest number in the output."""
    pairs = zip(found, _tensors(expected), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def _tensors(outputs: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor)]


@torch.no_grad()
def run_in_onnx(network: Any, path: str | Path, image_shape: Sequence[int]) -> None:
    """Has a file do what it can of a classifier or detector, which keeps what comes after.

    A classifier's head then returns the file's logits, the dense heads of a detector its maps; the
    second stage of a detector gets its feature maps.

    Args:
        network: Of the export that the file is of; changed in place.
        path: Of ``compact.onnx``.
        image_shape: Of an image that the network takes: channels, height, width.

    Raises:
        ImportError: If onnxruntime is missing.
        ExportError: If the file gives something else than the network, or would for images that
            are padded.
    """
    run = session_of(str(path))
    dense = dense_part(network)
    images = torch.zeros(1, *image_shape)
    with eval_mode(network):
        expected = dense(images)
        (name,) = ('rpn_head',) if dense is not network else heads_of(network, (images,))
        some = random_images(image_shape, 1)
        if dense is network and is_detector(network) and masks_padding(network, some):
            raise ExportError(
                f'{path}: {type(network).__name__} masks what is padding in a batch, which the '
                'file does not: it is right for whole images of one size. Test the weights in '
                'PyTorch (compact.pth)'
            )
    leaves, structure = pytree.tree_flatten(expected)
    found = run(images)
    if [x.shape for x in found] != [x.shape for x in leaves]:
        raise ExportError(
            f'{path} gives outputs of shapes {[tuple(x.shape) for x in found]}, the network of its '
            f'config {[tuple(x.shape) for x in leaves]}: the file is of another export'
        )
    given: dict[str, Any] = {}

    def extract_feat(inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs = pytree.tree_unflatten(run(inputs.cpu()), structure)
        features, given['head'] = outputs if dense is not network else (inputs, outputs)
        return features

    network.extract_feat = extract_feat
    network.get_submodule(name).forward = lambda features: given['head']
