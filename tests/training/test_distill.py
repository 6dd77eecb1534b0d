"""Distillation."""

import numpy as np
import pytest

from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.errors import DataError, SpecError
from featkit.heads import make_head
from featkit.training.distill import LOSSES, DistillationConfig, distill, teacher_of
from featkit.training.finetune import finetune
from featkit.training.loop import ExecutionConfig
from featkit.training.prepare import prepare

pytestmark = pytest.mark.slow

COMPUTE = Compute(device="cpu")
TEACHER = Request(
    data="digits", backbone="resnet18", weights="random:9", resize="16", precision="fp32"
)


@pytest.fixture
def teacher():
    """Return a teacher: a linear head of ten classes on embeddings of width 512."""
    rng = np.random.default_rng(0)
    head = make_head("linear").fit(
        rng.normal(size=(40, 512)).astype(np.float32), np.arange(40) % 10
    )
    names = tuple("0123456789")
    return teacher_of(TEACHER, head, names, names)


@pytest.fixture
def student(make_config, teacher):
    def make(*, execution=None, width=512, classifier=None, **options):
        distillation = DistillationConfig(
            **{name: options.pop(name) for name in set(options) & {"loss", "alpha", "distance"}}
        )
        prepared = prepare(make_config(**options), COMPUTE)
        done = distill(
            prepared,
            teacher,
            width,
            distillation,
            execution or ExecutionConfig(COMPUTE),
            classifier=classifier,
        )
        return {
            **{name: value.numpy() for name, value in done.network.state_dict().items()},
            "coef": done.coef,
        }

    return make


def equal(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mode", ["shallow", "deep", "full"])
def test_alpha_zero_is_training_without_a_teacher_bit_for_bit(student, make_config, mode):
    plain = finetune(
        prepare(make_config(mode=mode, augment="shift"), COMPUTE), ExecutionConfig(COMPUTE)
    )
    ours = student(mode=mode, augment="shift", alpha=0)
    assert np.array_equal(plain.coef, ours["coef"])
    assert equal({name: value.numpy() for name, value in plain.network.state_dict().items()}, ours)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_distillation_loss_changes_the_student(student, loss):
    assert not equal(
        student(mode="shallow", loss=loss, alpha=0.5), student(mode="shallow", alpha=0)
    )


@pytest.mark.parametrize("alpha", [0, 0.5])
def test_a_student_starts_from_the_given_classifier(student, alpha):
    weight = np.random.default_rng(1).normal(size=(10, 512)).astype(np.float32)
    given = student(
        mode="shallow", alpha=alpha, lr=0, classifier=(weight, np.zeros(10, np.float32))
    )
    assert np.array_equal(given["coef"], weight)
    assert not np.array_equal(student(mode="shallow", alpha=alpha, lr=0)["coef"], weight)


@pytest.mark.parametrize("mode", ["shallow", "deep", "full"])
@pytest.mark.parametrize("views", [0, 2])
def test_teacher_outputs_are_reproducible_cached_and_live(student, mode, views):
    """The same seed gives the same student."""
    options = {"mode": mode, "augment": "shift", "views": views, "epochs": 1}
    assert equal(student(**options), student(**options))


def test_teacher_outputs_follow_the_class_order_of_the_student(teacher):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 8)).astype(np.float32), np.arange(40) % 4
    names, turned = ("a", "b", "c", "d"), ("d", "c", "b", "a")
    head = make_head("knn:k=1").fit(x, y)
    one, other = (teacher_of(TEACHER, head, names, order).outputs(x) for order in (names, turned))
    assert np.array_equal(one[:, :4], other[:, 3::-1])
    assert np.array_equal(one[:, 4:], x)
    assert np.isfinite(one).all()


def test_a_teacher_without_a_class_of_the_student_is_refused():
    head = make_head("knn:k=1").fit(np.eye(4, dtype=np.float32), np.arange(4) % 2)
    with pytest.raises(DataError, match=r"does not know 1 classes \(c\)"):
        teacher_of(TEACHER, head, ("a", "b"), ("a", "b", "c"))


def test_mixup_is_refused_in_distillation(student):
    with pytest.raises(SpecError, match="are for unmixed images"):
        student(mode="shallow", mixup=0.2)


@pytest.mark.parametrize(
    "wrong", [{"loss": "l2"}, {"alpha": 2}, {"temperature": 0}, {"distance": "l1"}, {"beta": -1}]
)
def test_an_invalid_distillation_setting_is_refused(wrong):
    with pytest.raises(SpecError):
        DistillationConfig(**wrong)
