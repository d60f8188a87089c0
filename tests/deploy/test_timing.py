"""Networks in the engines that users run them in."""

import functools
import time

import numpy as np
import pytest
import torch

import mmstp
from mmstp import LatencyError
from mmstp.deploy.timing import BACKENDS, Setting
from tests.networks import TINY_INPUT, tiny


@pytest.mark.parametrize('backend', BACKENDS)
def test_an_engine_computes_what_the_network_does(backend):
    if backend != 'torch':
        pytest.importorskip(backend)
    network, images = tiny(), torch.randn(2, *TINY_INPUT.shape[1:])
    setting = Setting(backend, batch=2)
    with torch.no_grad():
        expected = network(images).numpy()
    found = setting.runner(network, images)()
    found = found if backend == 'torch' else found[0]
    assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_networks_take_turns_and_waiting_does_not_count():
    order = []

    def works():
        order.append('works')
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass

    def waits():
        order.append('waits')
        time.sleep(0.02)

    seconds = Setting().seconds([works, waits], rounds=3, warmup=1)
    assert order == ['works', 'waits'] * 4
    assert seconds.shape == (3, 2)
    assert (seconds[:, 0] >= 0.01).all()
    assert (seconds[:, 1] < 0.01).all()
    assert (Setting(threads=2).seconds([waits], rounds=2, warmup=0) >= 0.02).all()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(backend='tensorrt'), "backend 'tensorrt': expected one of torch, onnxruntime"),
        (dict(device='tpu'), "device 'tpu': expected 'cpu' or 'cuda'"),
        (dict(backend='openvino', device='cuda'), 'openvino: runs on the CPU'),
        (dict(backend='onnxruntime', half=True), 'backend onnxruntime: half is an option of torch'),
        (dict(backend='openvino', compile=True), 'backend openvino: compile is an option of torch'),
        (dict(backend='onnxruntime', channels_last=True), 'channels_last is an option of torch'),
        (dict(graph=True), r"device 'cpu': graph \(a CUDA graph\) is an option of 'cuda'"),
    ],
)
def test_what_does_not_run_is_refused(options, message):
    with pytest.raises(LatencyError, match=message):
        Setting(**options)


def test_a_gpu_has_to_be_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(LatencyError, match="device 'cuda': PyTorch finds no GPU"):
        Setting(device='cuda')


def test_the_engine_has_to_know_the_gpu(monkeypatch):
    onnxruntime = pytest.importorskip('onnxruntime')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: ['CPUExecutionProvider'])
    setting = Setting('onnxruntime', device='cuda')
    with pytest.raises(LatencyError, match='this onnxruntime has no CUDAExecutionProvider'):
        setting.runner(torch.nn.Linear(8, 8), torch.zeros(1, 8))


def test_a_backend_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(LatencyError, match='backend onnxruntime is not installed'):
        Setting('onnxruntime')


def test_a_setting_says_what_ran():
    found = Setting('torch', threads=2).described()
    assert found['versions'] == {'torch': torch.__version__, 'mmstp': mmstp.__version__}
    assert found['threads'] == 2
    assert found['processor']
    assert found['channels_last'] is False
    assert Setting.of(found) == Setting('torch', threads=2)


def test_layouts_differ_in_memory_and_not_in_numbers():
    network, images = tiny(), torch.randn(2, *TINY_INPUT.shape[1:])
    with torch.no_grad():
        expected = network(images)
    strides = []
    first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: strides.append(inputs[0].stride(1)))
    found = Setting(batch=2, channels_last=True).runner(network, images)()
    assert strides == [1]
    assert first.weight.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_layout_of_images_needs_images():
    with pytest.raises(LatencyError, match=r'channels_last: the inputs have shape \(2, 8\)'):
        Setting(channels_last=True).runner(torch.nn.Linear(8, 8), torch.zeros(2, 8))


class Broken(torch.nn.Module):
    """A network of two graphs."""

    def __init__(self, width):
        super().__init__()
        self.first = torch.nn.Linear(8, width)

    def forward(self, x):
        x = self.first(x)
        torch._dynamo.graph_break()
        return x.relu()


@pytest.mark.parametrize('graphs', [1, 2])
def test_each_of_many_networks_is_compiled(graphs, monkeypatch):
    """TorchDynamo recompiles a piece of code eight times at most, and then runs it as it is."""
    called = []

    def backend(graph, inputs):
        assert not any(isinstance(x, torch.SymInt) for x in inputs), 'no size may vary'
        return lambda *inputs: called.append(graph) or graph(*inputs)

    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=backend))
    runs = []
    for width in range(1, 12):
        network = Broken(width) if graphs == 2 else torch.nn.Sequential(torch.nn.Linear(8, width))
        batch = 1 + width % 3
        runs.append(Setting(compile=True).runner(network, torch.zeros(batch, 8)))
    called.clear()
    assert [run().shape[1] for run in runs] == list(range(1, 12))
    assert len(called) == len(set(map(id, called))) == graphs * len(runs)
