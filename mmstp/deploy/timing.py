"""How long networks take: by the engine that a user would run them in, several in turn."""

from __future__ import annotations

import importlib.util
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import LatencyError
from ..foreign import recompiling
from ..version import __version__
from .onnx import as_onnx

Run = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What runs a network.

    Attributes:
        backend: One of `BACKENDS`.
        device: ``'cpu'`` or ``'cuda'``.
        batch: Images at once.
        threads: Of the CPU.
        half: Whether weights and images have half precision; of ``'torch'`` alone.
        compile: Whether `torch.compile` makes the network faster; of ``'torch'`` alone.
        channels_last: Whether channels lie beside each other in memory; of ``'torch'`` alone.
        graph: Whether all kernels are started at once, as a CUDA graph; of ``'torch'`` on
            ``'cuda'`` alone.

    Raises:
        LatencyError: If the backend is unknown, is not installed or does not run so.
    """

    backend: str = 'torch'
    device: str = 'cpu'
    batch: int = 1
    threads: int = 1
    half: bool = False
    compile: bool = False
    channels_last: bool = False
    graph: bool = False

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise LatencyError(f'backend {self.backend!r}: expected one of {", ".join(BACKENDS)}')
        if self.device not in ('cpu', 'cuda'):
            raise LatencyError(f"device {self.device!r}: expected 'cpu' or 'cuda'")
        if self.device == 'cuda' and self.backend == 'openvino':
            raise LatencyError('backend openvino: runs on the CPU; use torch or onnxruntime')
        if self.device == 'cuda' and not torch.cuda.is_available():
            raise LatencyError("device 'cuda': PyTorch finds no GPU")
        for name in ('half', 'compile', 'channels_last', 'graph'):
            if self.backend != 'torch' and getattr(self, name):
                raise LatencyError(f'backend {self.backend}: {name} is an option of torch')
        if self.graph and self.device != 'cuda':
            raise LatencyError("device 'cpu': graph (a CUDA graph) is an option of 'cuda'")
        if importlib.util.find_spec(self.backend) is None:
            raise LatencyError(f'backend {self.backend} is not installed: pip install it')

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Setting:
        """The setting that `described` was said of, on this machine."""
        return cls(**{one.name: described.get(one.name, one.default) for one in fields(cls)})

    def described(self) -> dict[str, Any]:
        """With the processor and the versions of what makes and runs networks, in plain types."""
        cuda = self.device == 'cuda'
        backend = importlib.import_module(self.backend).__version__
        return {
            **asdict(self),
            'processor': torch.cuda.get_device_name() if cuda else _processor(),
            # PyTorch writes the ONNX files, too
            'versions': {self.backend: backend, 'torch': torch.__version__, 'mmstp': __version__},
        }

    def runner(self, network: nn.Module, images: Tensor) -> Run:
        """A function that runs the network once; the network may be changed."""
        return BACKENDS[self.backend](self, network, images)

    def seconds(self, runs: Sequence[Run], rounds: int, warmup: int = 2) -> NDArray[np.float64]:
        """Seconds of each in each round, in turn; shape (rounds, runs).

        On one thread of the CPU it is the time that this process had it: what other processes took
        does not count.
        """
        alone = self.device == 'cpu' and self.threads == 1
        clock = time.process_time if alone else time.perf_counter
        found = np.empty((warmup + rounds, len(runs)))
        for turn in range(warmup + rounds):
            for place, run in enumerate(runs):
                self._wait()
                start = clock()
                run()
                self._wait()
                found[turn, place] = clock() - start
        return found[warmup:]

    def _wait(self) -> None:
        if self.device == 'cuda':
            torch.cuda.synchronize()


def _processor() -> str:
    """The name of the CPU, and the vector instructions that PyTorch finds there."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    return f'{next(names, platform.machine())} ({torch.backends.cpu.get_cpu_capability()})'


def _torch(setting: Setting, network: nn.Module, images: Tensor) -> Run:
    torch.set_num_threads(setting.threads)
    kind = torch.float16 if setting.half else torch.float32
    network, images = network.to(setting.device, kind), images.to(setting.device, kind)
    network.train(False)
    called: Any = network
    if setting.channels_last:
        if images.ndim != 4:
            raise LatencyError(
                f'channels_last: the inputs have shape {tuple(images.shape)}; expected images, of '
                'four dimensions'
            )
        called = called.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    if setting.compile:
        called = torch.compile(_of_own_code(called), dynamic=False)

    def run() -> Any:
        with torch.inference_mode():
            return called(images)

    if setting.compile:
        with recompiling():
            run()
    return as_graph(run) if setting.graph else run


def _of_own_code(network: Callable[..., Any]) -> Callable[..., Any]:
    """The same as a function that shares its code with no other.

    TorchDynamo keeps what it compiled with the code, and looks through all of it in every call. All
    networks of a class have one ``forward``.
    """

    def forward(images: Tensor) -> Any:
        return network(images)

    forward.__code__ = forward.__code__.replace()
    return forward


def as_graph(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same as a CUDA graph: all kernels started at once, into the same outputs each time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what libraries allocate and choose at first is no part of it
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()

    def replay(_keeps: object = run) -> Any:  # the graph reads the memory of weights and inputs
        graph.replay()
        return outputs

    return replay


def _onnxruntime(setting: Setting, network: nn.Module, images: Tensor) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = setting.threads, 1
    provider = 'CUDAExecutionProvider' if setting.device == 'cuda' else 'CPUExecutionProvider'
    if provider not in onnxruntime.get_available_providers():
        raise LatencyError(f'device {setting.device!r}: this onnxruntime has no {provider}')
    content = as_onnx(network, images)
    session = onnxruntime.InferenceSession(content, options, providers=[provider])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def _openvino(setting: Setting, network: nn.Module, images: Tensor) -> Run:
    import openvino

    core = openvino.Core()
    content = as_onnx(network, images)
    options = {
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_NUM_THREADS': setting.threads,
        'INFERENCE_PRECISION_HINT': 'f32',  # newer processors would round to bfloat16
    }
    compiled = core.compile_model(core.read_model(content), 'CPU', options)
    request, array = compiled.create_infer_request(), images.numpy()
    return lambda: request.infer([array])


BACKENDS: dict[str, Callable[[Setting, nn.Module, Tensor], Run]] = {
    'torch': _torch,
    'onnxruntime': _onnxruntime,
    'openvino': _openvino,
}
