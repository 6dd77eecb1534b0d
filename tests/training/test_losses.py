"""Losses against direct formulas in float64, and gradients against finite differences."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch.autograd import gradcheck

from featkit.training.losses import (
    CrossEntropy,
    decoupled_loss,
    embedding_distance,
    make_projection,
    soft_target_loss,
)

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 6, 5)) * 3
LABELS = np.array([0, 1, 2, 3, 4, 0])
T = 4.0


def tensor(values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def kl(p, q):
    return (p * (np.log(p) - np.log(q))).sum(axis=1).mean()


def direct_soft_targets():
    return T**2 * kl(softmax(TEACHER / T, axis=1), softmax(STUDENT / T, axis=1))


def direct_decoupled(beta):
    p, q = softmax(TEACHER / T, axis=1), softmax(STUDENT / T, axis=1)
    rows = np.arange(len(LABELS))
    binary = [np.column_stack([each[rows, LABELS], 1 - each[rows, LABELS]]) for each in (p, q)]
    rest = [
        np.array(
            [
                np.delete(row, label) / (1 - row[label])
                for row, label in zip(each, LABELS, strict=True)
            ]
        )
        for each in (p, q)
    ]
    return T**2 * (kl(*binary) + beta * kl(*rest))


LOSSES = {
    "cross-entropy": (
        lambda x: CrossEntropy()(x, torch.tensor(LABELS)),
        lambda: -log_softmax(STUDENT, axis=1)[np.arange(6), LABELS].mean(),
    ),
    "soft targets": (lambda x: soft_target_loss(x, tensor(TEACHER), T), direct_soft_targets),
    "decoupled": (
        lambda x: decoupled_loss(x, tensor(TEACHER), torch.tensor(LABELS), T, 8.0),
        lambda: direct_decoupled(8.0),
    ),
    "cosine": (
        lambda x: embedding_distance(x, tensor(TEACHER), "cosine"),
        lambda: (
            1
            - (STUDENT * TEACHER).sum(1)
            / np.linalg.norm(STUDENT, axis=1)
            / np.linalg.norm(TEACHER, axis=1)
        ).mean(),
    ),
    "mse": (
        lambda x: embedding_distance(x, tensor(TEACHER), "mse"),
        lambda: ((STUDENT - TEACHER) ** 2).mean(),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_equals_its_formula(name):
    ours, direct = LOSSES[name]
    assert float(ours(tensor(STUDENT))) == pytest.approx(direct(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_equals_finite_differences(name):
    assert gradcheck(LOSSES[name][0], tensor(STUDENT, grad=True))


@pytest.mark.parametrize("name", ["soft targets", "decoupled", "cosine", "mse"])
def test_a_distillation_loss_is_zero_for_equal_outputs(name):
    assert float(LOSSES[name][0](tensor(TEACHER))) == pytest.approx(0, abs=1e-12)


def test_decoupled_loss_generalises_soft_targets():
    """Zhao et al. 2022, eq. 6: KD = TCKD + (1 - p_t) NCKD, here for one image."""
    student, teacher = tensor(STUDENT[:1]), tensor(TEACHER[:1])
    rest = 1 - float(torch.softmax(teacher / T, dim=1)[0, LABELS[0]])
    ours = decoupled_loss(student, teacher, torch.tensor(LABELS[:1]), T, rest)
    assert float(ours) == pytest.approx(float(soft_target_loss(student, teacher, T)), rel=1e-10)


def test_teacher_log_probabilities_give_the_loss_of_its_logits():
    scores = tensor(log_softmax(TEACHER, axis=1))
    assert float(soft_target_loss(tensor(STUDENT), scores, T)) == pytest.approx(
        direct_soft_targets(), rel=1e-12
    )


def test_class_weights_and_offsets_follow_the_formula():
    weight, offset = RNG.uniform(0.5, 2, (2, 5))
    each = -log_softmax(STUDENT + offset, axis=1)[np.arange(6), LABELS]
    expected = (weight[LABELS] * each).sum() / weight[LABELS].sum()
    ours = CrossEntropy(tensor(weight), tensor(offset))(tensor(STUDENT), torch.tensor(LABELS))
    assert float(ours) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("mixed", [False, True], ids=["hard", "mixed"])
def test_coefficients_of_log_probabilities_give_the_same_loss(smoothing, weighted, mixed):
    weight = tensor(RNG.uniform(0.5, 2, 5)) if weighted else None
    labels = torch.tensor(LABELS)
    if mixed:
        labels = tensor(RNG.dirichlet(np.ones(5), 6))
    loss = CrossEntropy(weight, None, smoothing)
    logits = tensor(STUDENT)
    ours = -(loss.coefficients(labels, 5) * torch.log_softmax(logits, dim=1)).sum()
    assert float(ours) == pytest.approx(float(loss(logits, labels)), rel=1e-6)


def test_embeddings_of_equal_width_are_not_projected():
    assert not list(make_projection(8, 8).parameters())
    assert make_projection(8, 16)(torch.zeros(2, 8)).shape == (2, 16)
