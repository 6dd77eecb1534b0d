"""Training in TensorFlow follows training in torch; run in a process of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from featkit.backbones import load_backbone
from featkit.embeddings.pipeline import Compute
from featkit.errors import SpecError, TrainingError
from featkit.training.data import BatchLoader, make_inputs, shuffled
from featkit.training.finetune import (
    finetune,
    initial_model,
    label_loss,
    loop_factory,
    make_cross_entropy,
)
from featkit.training.loop import ExecutionConfig, TrainingCallbacks, TrainingLoop, TrainingTask
from featkit.training.prepare import prepare

pytestmark = pytest.mark.keras

COMPUTE = Compute(device="cpu")


FRAMEWORKS = ("torch", "keras")


@pytest.fixture
def in_float64():
    """Let Keras create layers in float64."""
    import keras

    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def make_loop(config, framework, *, double=False):
    """Return the training loop of a framework with the initial weights of torch."""
    spec = config.request.backbone
    spec = f"keras:{spec.replace(':', ',')}" if framework == "keras" else spec
    prepared = prepare(replace(config, request=replace(config.request, backbone=spec)), COMPUTE)
    model = initial_model(prepared)
    model = model.double() if double else model
    train_inputs, _ = make_inputs(prepared, model.body, COMPUTE)
    labels = prepared.images.labels[prepared.images.splits == "train"]
    loader = BatchLoader(
        train_inputs, labels, prepared.config.batch_size, shuffled(len(labels), config.seed)
    )
    task = TrainingTask(
        model=model,
        train=loader,
        val=None,
        loss=label_loss(make_cross_entropy(prepared, COMPUTE)),
        config=prepared.config,
        fingerprint="",
        execution=ExecutionConfig(COMPUTE),
    )
    return loop_factory(prepared)(task)


def relative(one, other):
    one, other = np.asarray(one), np.asarray(other)
    return np.abs(one - other).max() / max(np.abs(one).max(), 1e-12)


def gradients(config, *, double=False):
    """Return the losses and the gradients of the first step in torch and in TensorFlow."""
    torch_loop, keras_loop = (make_loop(config, name, double=double) for name in FRAMEWORKS)
    batch = next(torch_loop.task.train.batches(0))
    inputs = batch.inputs.to(torch_loop.dtype)
    assert isinstance(torch_loop, TrainingLoop)
    torch_loop.start_epoch()
    _, logits = torch_loop.model(inputs)
    loss = torch_loop.task.loss(logits, logits, batch.labels, batch)
    loss.backward()
    named = torch_loop.model.named_parameters()
    expected = {name: value.grad.numpy() for name, value in named if value.grad is not None}
    coefficients = keras_loop._criterion.coefficients(batch.labels, logits.shape[1])
    found_loss, _, values = keras_loop.gradients(
        keras_loop.model.inputs(inputs), coefficients.to(torch_loop.dtype).numpy()
    )
    from featkit.backbones.keras_modules import to_torch

    arrays = [to_torch(value.numpy()) for value in values]
    return (loss.item(), expected), (
        float(found_loss),
        dict(zip(keras_loop._trained, arrays, strict=True)),
    )


def check_gradients(config, most, *, double=False):
    (loss, expected), (found_loss, found) = gradients(config, double=double)
    assert relative(loss, found_loss) <= most
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = relative(gradient, found[name])
        assert difference <= most, f"{name}: {difference}"


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "shallow"},
        {"mode": "deep", "balance": "logit-adjust", "smoothing": 0.1},
        {"mode": "full", "norm": "frozen", "balance": "reweight"},
    ],
    ids=["shallow", "deep", "frozen-norm"],
)
def test_the_first_step_has_the_loss_and_gradients_of_torch(make_config, options):
    check_gradients(make_config(resize="16", weights="random", **options), 1e-4)


@pytest.mark.parametrize(
    "backbone", ["resnet18:stem=small", "resnet50:stem=small"], ids=["18", "50"]
)
def test_gradients_through_batch_statistics_are_those_of_torch(make_config, backbone, in_float64):
    """In float64: in float32, ReLUs switch by rounding, which BatchNorm of few pixels amplifies."""
    config = make_config(mode="full", resize="16", weights="random", backbone=backbone)
    check_gradients(config, 1e-7, double=True)


@pytest.mark.realdata
def test_real_weights_and_images_have_the_gradients_of_torch(
    make_config, real_data, real_weights, in_float64
):
    """In float64: in float32, ReLUs that switch by rounding make a difference of up to 1e-3."""
    config = make_config(
        mode="full",
        norm="frozen",
        backbone="resnet18",
        weights="imagenet",
        data=str(real_data / "caltech101"),
        limit="train=202,test=101",
        resize="96",
        batch_size=8,
    )
    check_gradients(config, 1e-6, double=True)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"mode": "full", "optimiser": "sgd", "lr": 0.01}, marks=pytest.mark.slow),
        pytest.param(
            {"mode": "full", "optimiser": "adamw", "lr": 1e-3, "clip": 1.0, "layer_decay": 0.7},
            marks=pytest.mark.slow,
        ),
        {"mode": "full", "mixup": 0.2, "cutmix": 1.0, "ema": 0.9, "lr": 1e-3},
    ],
    ids=["sgd", "adamw-clip-decay", "mix-ema"],
)
def test_ten_steps_have_the_losses_and_weights_of_torch(make_config, options, in_float64):
    config = make_config(resize="16", limit="train=100,val=10,test=20", warmup=0.5, **options)
    losses, states = {}, {}
    for framework in FRAMEWORKS:
        loop = make_loop(config, framework, double=True)
        losses[framework] = take_steps(loop, 10)
        states[framework] = loop.state(evaluated=True)
    np.testing.assert_allclose(losses["keras"], losses["torch"], rtol=1e-6)
    assert states["keras"].keys() == states["torch"].keys()
    for name, value in states["torch"].items():
        assert relative(value, states["keras"][name]) <= 1e-5, name


@pytest.mark.slow
def test_ten_steps_in_float32_have_the_losses_of_torch(make_config):
    config = make_config(
        mode="full", norm="frozen", lr=1e-3, resize="16", limit="train=100,val=10,test=20"
    )
    losses = [take_steps(make_loop(config, framework), 10) for framework in FRAMEWORKS]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def take_steps(loop, steps):
    """Take steps of a loop and return the loss of each."""
    losses = []
    loop.start_epoch()
    for batch in loop.task.train.batches(0):
        before = loop.sums[0].item()
        loop._run_step(batch)
        loop.step += 1
        losses.append((loop.sums[0].item() - before) / len(batch.labels))
        if len(losses) == steps:
            return losses
    raise AssertionError(f"{len(losses)} steps in an epoch")


@pytest.mark.parametrize(
    "mode",
    [
        "shallow",
        "deep",
        *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("full", "scratch")),
    ],
)
def test_every_mode_trains_the_same_tensors_as_torch(trained, mode):
    done = trained(mode=mode, backbone="keras:resnet18,stem=small", epochs=1)
    other = trained(mode=mode, epochs=1)
    assert done.network.state_dict().keys() == other.network.state_dict().keys()
    before = load_backbone("resnet18:stem=small", weights="random:3").build().state_dict()
    if mode == "scratch":
        return
    for name, value in other.network.state_dict().items():
        is_changed = not torch.equal(value, before[name])
        assert is_changed == (not torch.equal(done.network.state_dict()[name], before[name])), name


def test_an_interrupted_training_ends_with_the_same_weights(make_config, tmp_path):
    config = make_config(mode="deep", backbone="keras:resnet18,stem=small", epochs=3, ema=0.9)
    prepared = prepare(config, COMPUTE)
    whole = finetune(prepared, ExecutionConfig(COMPUTE))

    def interrupt(record):
        if record.number == 1:
            raise KeyboardInterrupt

    first = ExecutionConfig(
        COMPUTE, folder=tmp_path / "run", callbacks=TrainingCallbacks(on_epoch=interrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        finetune(prepared, first)
    resumed = finetune(prepared, ExecutionConfig(COMPUTE, folder=tmp_path / "run", resume=True))
    assert np.array_equal(whole.coef, resumed.coef)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_a_diverging_training_is_one_error(trained):
    with pytest.raises(TrainingError, match="lower --lr"):
        trained(mode="full", backbone="keras:resnet18,stem=small", lr=1e6, epochs=3)


def test_kerass_own_networks_and_bfloat16_are_refused(trained):
    with pytest.raises(SpecError, match="cannot be fine-tuned: use keras:resnet50"):
        trained(mode="deep", backbone="keras:applications/resnet50", resize="32")
    with pytest.raises(SpecError, match="float32"):
        trained(mode="full", backbone="keras:resnet18,stem=small", precision="bf16")
