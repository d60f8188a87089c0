"""The distillation loss: what it must not depend on, and its formula."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmstp import normalized_kl
from mmstp.stp.losses import NORMALIZATIONS


@pytest.fixture
def logits():
    return torch.randn(2, 8, 20) * torch.tensor([1.0, 3.0])[:, None, None]


every = pytest.mark.parametrize('normalize', NORMALIZATIONS)


@every
def test_zero_for_equal_logits_and_positive_for_others(normalize, logits):
    student, teacher = logits
    assert normalized_kl(teacher, teacher, normalize).abs() < 1e-6
    assert normalized_kl(student, teacher, normalize) > 1e-3


@pytest.mark.parametrize(
    ('normalize', 'size', 'factor'),
    [
        *(('l2', 1.0, factor) for factor in (1e-3, 0.5, 7.0, 1e4)),
        *(('layer_norm', 100.0, factor) for factor in (0.5, 7.0, 1e4)),
    ],
)
def test_scale_does_not_matter(normalize, size, factor, logits):
    """To layer norm that of logits which are large beside `FLOOR`."""
    student, teacher = size * logits
    expected = normalized_kl(student, teacher, normalize)
    for pair in ((factor * student, teacher), (student, factor * teacher)):
        torch.testing.assert_close(normalized_kl(*pair, normalize), expected, rtol=1e-3, atol=0)
    assert normalized_kl(factor * teacher, teacher, normalize).abs() < 1e-6


@pytest.mark.parametrize('size', [1e-6, 1e-3, 0.1])
def test_small_logits_get_no_larger_gradients(size, logits):
    """Those of an untrained head; at most what the plain divergence to the same would give them."""
    student, teacher = (size * logits[0]).requires_grad_(), logits[1]
    normalised = F.layer_norm(teacher, teacher.shape[1:], eps=1.0)
    grads = [
        torch.autograd.grad(normalized_kl(student, to, normalize), student)[0].norm()
        for normalize, to in (('layer_norm', teacher), ('none', normalised))
    ]
    assert 0.5 * grads[1] < grads[0] < 1.01 * grads[1]


@every
@pytest.mark.parametrize('shift', [-3.0, 10.0])
def test_shift_matters_to_the_unit_norm_alone(normalize, shift, logits):
    student, teacher = logits
    expected = normalized_kl(student, teacher, normalize)
    shifted = normalized_kl(student + shift, teacher, normalize)
    assert torch.isclose(shifted, expected, rtol=1e-3) == (normalize != 'l2')


@every
def test_only_the_student_learns(normalize, logits):
    student, teacher = (x.clone().requires_grad_() for x in logits)
    normalized_kl(student, teacher, normalize).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@every
def test_float32_under_autocast(normalize, logits):
    student, teacher = logits
    expected = normalized_kl(student.bfloat16().float(), teacher.bfloat16().float(), normalize)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        for pair in ((student.bfloat16(), teacher.bfloat16()), (student.bfloat16(), teacher)):
            assert normalized_kl(*pair, normalize).dtype == torch.float32
        assert F.linear(student, student).dtype == torch.bfloat16  # what it does to others
        loss = normalized_kl(student.bfloat16(), teacher.bfloat16(), normalize)
    assert torch.equal(loss, expected)


@every
@pytest.mark.parametrize('constant', [0.0, 2.0])
def test_gradient_is_finite_for_constant_logits(normalize, constant, logits):
    student = torch.full((8, 20), constant, requires_grad=True)
    loss = normalized_kl(student, logits[1], normalize)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def numpy_softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ('normalize', 'formula'),
    [
        ('l2', lambda z: z / np.sqrt((z**2).sum(axis=1, keepdims=True))),
        (
            'layer_norm',
            lambda z: (z - z.mean(1, keepdims=True)) / np.sqrt(1 + z.var(1, keepdims=True)),
        ),
        ('none', lambda z: z),
    ],
)
def test_equals_equations_4_and_5_written_out(normalize, formula, logits):
    """Sum over the classes of p log(p / q), mean over the batch; p is the teacher's."""
    q, p = (numpy_softmax(formula(z.double().numpy())) for z in logits)
    expected = (p * np.log(p / q)).sum() / len(p)
    assert normalized_kl(*logits, normalize).item() == pytest.approx(expected, rel=1e-4)


def test_without_normalisation_it_is_torch_s_divergence(logits):
    student, teacher = logits
    p, q = (torch.distributions.Categorical(logits=z) for z in (teacher, student))
    expected = torch.distributions.kl_divergence(p, q).mean()
    torch.testing.assert_close(normalized_kl(student, teacher, 'none'), expected)


def test_default_is_layer_norm(logits):
    assert torch.equal(normalized_kl(*logits), normalized_kl(*logits, 'layer_norm'))


def test_unknown_normalisation(logits):
    message = r"normalize='l1': expected one of \('layer_norm', 'l2', 'none'\)"
    with pytest.raises(ValueError, match=message):
        normalized_kl(*logits, 'l1')
