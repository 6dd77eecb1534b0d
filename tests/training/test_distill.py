"""Students and their teachers."""

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

COMPUTE = Compute(device="cpu")
TEACHER = Request(data="digits", backbone="resnet18", weights="random:9", resize="16", precision="fp32")


@pytest.fixture
def teacher():
    """A head on embeddings of width 512 whose labels are ten classes; what it says depends on them."""
    rng = np.random.default_rng(0)
    head = make_head("linear").fit(rng.normal(size=(40, 512)).astype(np.float32), np.arange(40) % 10)
    names = tuple("0123456789")
    return teacher_of(TEACHER, head, names, names)


@pytest.fixture
def student(wanted, teacher):
    def make(*, how=None, width=512, classifier=None, **options):
        distillation = DistillationConfig(
            **{name: options.pop(name) for name in set(options) & {"loss", "alpha", "distance"}}
        )
        prepared = prepare(wanted(**options), COMPUTE)
        done = distill(prepared, teacher, width, distillation, how or ExecutionConfig(COMPUTE), classifier=classifier)
        return {**{name: value.numpy() for name, value in done.network.state_dict().items()}, "coef": done.coef}

    return make


def equal(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mode", ["shallow", "deep", "full"])
def test_without_a_weight_on_the_teacher_it_is_plain_training_to_the_bit(student, wanted, mode):
    plain = finetune(prepare(wanted(mode=mode, augment="shift"), COMPUTE), ExecutionConfig(COMPUTE))
    ours = student(mode=mode, augment="shift", alpha=0)
    assert np.array_equal(plain.coef, ours["coef"])
    assert equal({name: value.numpy() for name, value in plain.network.state_dict().items()}, ours)


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_teaches_something_else(student, loss):
    assert not equal(student(mode="shallow", loss=loss, alpha=0.5), student(mode="shallow", alpha=0))


@pytest.mark.parametrize("alpha", [0, 0.5])
def test_a_student_begins_with_the_classifier_that_it_is_given(student, alpha):
    weight = np.random.default_rng(1).normal(size=(10, 512)).astype(np.float32)
    given = student(mode="shallow", alpha=alpha, lr=0, classifier=(weight, np.zeros(10, np.float32)))
    assert np.array_equal(given["coef"], weight)
    assert not np.array_equal(student(mode="shallow", alpha=alpha, lr=0)["coef"], weight)


@pytest.mark.parametrize("mode", ["shallow", "deep", "full"])
@pytest.mark.parametrize("views", [0, 2])
def test_the_teacher_is_asked_from_the_cache_or_live(student, mode, views):
    """Either way the same seed gives the same student."""
    options = {"mode": mode, "augment": "shift", "views": views, "epochs": 1}
    assert equal(student(**options), student(**options))


def test_a_teacher_with_another_order_of_classes_says_the_same(teacher):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 8)).astype(np.float32), np.arange(40) % 4
    names, turned = ("a", "b", "c", "d"), ("d", "c", "b", "a")
    head = make_head("knn:k=1").fit(x, y)
    one, other = (teacher_of(TEACHER, head, names, order).outputs(x) for order in (names, turned))
    assert np.array_equal(one[:, :4], other[:, 3::-1])
    assert np.array_equal(one[:, 4:], x)
    assert np.isfinite(one).all()


def test_a_teacher_that_does_not_know_a_class_is_refused():
    head = make_head("knn:k=1").fit(np.eye(4, dtype=np.float32), np.arange(4) % 2)
    with pytest.raises(DataError, match=r"does not know 1 classes \(c\)"):
        teacher_of(TEACHER, head, ("a", "b"), ("a", "b", "c"))


def test_mixed_images_have_no_teacher(student):
    with pytest.raises(SpecError, match="has not seen mixed images"):
        student(mode="shallow", mixup=0.2)


@pytest.mark.parametrize("wrong", [{"loss": "l2"}, {"alpha": 2}, {"temperature": 0}, {"distance": "l1"}, {"beta": -1}])
def test_a_setting_that_nobody_knows_is_refused(wrong):
    with pytest.raises(SpecError):
        DistillationConfig(**wrong)
