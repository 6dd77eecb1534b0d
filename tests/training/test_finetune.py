"""Fine-tuning, on small trainings."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from featkit.backbones import load_backbone
from featkit.backbones.engines import open_engine
from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError, SpecError, StorageError, TrainingError
from featkit.training import data, loop
from featkit.training.data import ImageInputs, make_inputs
from featkit.training.finetune import finetune, initial_model
from featkit.training.history import history_rows
from featkit.training.loop import ExecutionConfig, TrainingCallbacks
from featkit.training.prepare import prepare, split_validation

pytestmark = pytest.mark.slow

COMPUTE = Compute(device="cpu")


def state(done):
    """Return all trained weights as arrays."""
    arrays = {name: value.numpy() for name, value in done.network.state_dict().items()}
    return {**arrays, "coef": done.coef, "intercept": done.intercept}


def differing(one, other):
    """Return the names of arrays that are not equal bit for bit."""
    return {name for name in one if not np.array_equal(one[name], other[name], equal_nan=True)}


@pytest.fixture
def initial_state():
    """Return the initial network of the small trainings."""
    module = load_backbone("resnet18:stem=small", weights="random:3").build()
    return {name: value.numpy() for name, value in module.state_dict().items()}


def test_shallow_training_changes_only_the_classifier(trained, initial_state):
    """The network is unchanged bit for bit, BatchNorm statistics included."""
    done = trained(mode="shallow")
    assert differing(initial_state, state(done)) == set()
    assert np.abs(done.coef).max() > 0


def test_shallow_training_can_update_batchnorm_statistics(trained, initial_state):
    changed = differing(initial_state, state(trained(mode="shallow", norm="update")))
    assert changed
    assert all(
        name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed
    )


@pytest.mark.parametrize(
    ("unfreeze", "prefixes"),
    [("layer4", ("layer4.",)), ("layer4.1", ("layer4.1.",)), ("1", ("layer4.1.",))],
)
def test_deep_training_changes_only_the_unfrozen_blocks(trained, initial_state, unfreeze, prefixes):
    changed = differing(initial_state, state(trained(mode="deep", unfreeze=unfreeze)))
    assert changed == {name for name in initial_state if name.startswith(prefixes)}


@pytest.mark.parametrize("mode", ["full", "scratch"])
def test_full_and_scratch_training_change_every_layer(trained, initial_state, mode):
    assert differing(initial_state, state(trained(mode=mode))) == set(initial_state)


def test_frozen_norms_keep_their_running_statistics(trained, initial_state):
    changed = differing(initial_state, state(trained(mode="full", norm="frozen")))
    assert changed
    assert not any(name.endswith(("running_mean", "running_var")) for name in changed)


@pytest.mark.parametrize("mode", ["shallow", pytest.param("deep", marks=pytest.mark.long), "full"])
def test_the_same_seed_gives_the_same_weights(trained, mode):
    one, other = (
        state(trained(mode=mode, augment="shift", mixup=0.2, cutmix=0.5, ema=0.9)) for _ in range(2)
    )
    assert differing(one, other) == set()
    assert differing(
        one, state(trained(mode=mode, augment="shift", mixup=0.2, cutmix=0.5, ema=0.9, seed=1))
    )


def test_cached_activations_equal_those_of_the_frozen_layers(make_config):
    """They are equal up to float16."""
    prepared = prepare(make_config(mode="deep"), COMPUTE)
    model = initial_model(prepared)
    kept, _ = make_inputs(prepared, model.body, COMPUTE)
    live = ImageInputs(
        kept_images(prepared),
        kept.views,
        prepared.backbone.preprocess,
        frozen_layers=trunk(prepared),
    )
    rows = [np.arange(5), np.array([7, 6])]
    for (ours, _), (live_inputs, _) in zip(
        kept.batches(0, rows), live.batches(0, rows), strict=True
    ):
        assert ours.dtype == torch.float16
        np.testing.assert_allclose(ours.float(), live_inputs, rtol=2e-3, atol=1e-3)


def kept_images(prepared):
    images = prepared.images
    return images.take(np.flatnonzero(images.splits != "test"))


def trunk(prepared):
    return open_engine(
        load_backbone(
            "resnet18:stem=small", weights="random:3", layer="layer3", pool="none", resize="8"
        )
    )


class _StopError(Exception):
    pass


@pytest.mark.parametrize(
    "mode", ["shallow", *(pytest.param(mode, marks=pytest.mark.long) for mode in ("deep", "full"))]
)
def test_an_interrupted_training_resumes_to_the_same_weights(
    make_config, tmp_path, mode, monkeypatch
):
    """With a checkpoint after every step, interrupted at random steps."""
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    prepared = prepare(
        make_config(mode=mode, augment="shift", mixup=0.2, ema=0.9, patience=5), COMPUTE
    )
    whole = finetune(prepared, ExecutionConfig(COMPUTE))
    moments = [(epoch, step) for epoch in range(2) for step in range(1, 6)]
    for moment in random.Random(0).sample(moments, 1 if mode == "full" else 2):

        def stop(epoch, step, *_, moment=moment):
            if (epoch, step) == moment:
                raise _StopError

        folder = tmp_path / f"{moment}"
        with pytest.raises(_StopError):
            finetune(
                prepared,
                ExecutionConfig(COMPUTE, folder, callbacks=TrainingCallbacks(on_step=stop)),
            )
        resumed = finetune(prepared, ExecutionConfig(COMPUTE, folder, resume=True))
        assert differing(state(whole), state(resumed)) == set(), moment
        assert [epoch.train for epoch in whole.history] == [
            epoch.train for epoch in resumed.history
        ]


PROGRAM = """
import sys, json, numpy as np, torch
torch.set_num_threads(1)
from pathlib import Path
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.training import loop
from featkit.training.data import ImageInputs
from featkit.training.finetune import finetune, initial_model
from featkit.training.loop import ExecutionConfig, TrainingCallbacks
from featkit.training.prepare import prepare
from featkit.training.config import TrainingConfig
loop._CHECKPOINT_SECONDS = 0.0
BACKBONE, CPU = "resnet18:stem=small", Compute(device="cpu")
folder, out = map(Path, sys.argv[1:])
request = Request(
    data="digits", limit="train=40,val=10,test=20", resize="8", backbone=BACKBONE,
    weights="random:3", precision="fp32"
)
config = TrainingConfig(
    epochs=3, batch_size=8, augment="shift", views=2, request=request, cache=folder / "cache"
)
callbacks = TrainingCallbacks(on_step=lambda *_: print("step", flush=True))
execution = ExecutionConfig(CPU, folder / "work", resume=True, callbacks=callbacks)
done = finetune(prepare(config, CPU), execution)
weights = {name: value.numpy() for name, value in done.network.state_dict().items()}
np.savez(out, coef=done.coef, **weights)
"""


def test_a_killed_training_resumes_to_the_same_weights(tmp_path):
    """SIGKILL at random moments (FEATKIT_KILLS of them, 1 by default), then --resume."""
    program = [sys.executable, "-c", PROGRAM]
    subprocess.run(
        [*program, tmp_path / "a", tmp_path / "whole.npz"], check=True, capture_output=True
    )
    kills, rng = int(os.environ.get("FEATKIT_KILLS", "1")), random.Random(0)
    for _ in range(kills):
        process = subprocess.Popen(
            [*program, tmp_path / "b", tmp_path / "killed.npz"], stdout=subprocess.PIPE
        )
        for _ in range(rng.randint(1, 5)):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run(
        [*program, tmp_path / "b", tmp_path / "killed.npz"], check=True, capture_output=True
    )
    whole, killed = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "killed.npz")
    assert differing(whole, killed) == set()


def test_a_checkpoint_of_another_training_is_refused(make_config, tmp_path):
    finetune(prepare(make_config(mode="shallow"), COMPUTE), ExecutionConfig(COMPUTE, tmp_path))
    with pytest.raises(TrainingError, match="is of another training"):
        finetune(
            prepare(make_config(mode="shallow", lr=0.5), COMPUTE),
            ExecutionConfig(COMPUTE, tmp_path, resume=True),
        )


def test_a_damaged_checkpoint_is_refused(make_config, tmp_path):
    prepared = prepare(make_config(mode="shallow"), COMPUTE)
    finetune(prepared, ExecutionConfig(COMPUTE, tmp_path))
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="damaged"):
        finetune(prepared, ExecutionConfig(COMPUTE, tmp_path, resume=True))


def test_changed_images_change_the_fingerprint(make_config, photos):
    options = {"data": str(photos), "limit": None, "mode": "shallow"}
    before = prepare(make_config(**options), COMPUTE).fingerprint
    image = next(photos.glob("red/*.png"))
    image.write_bytes((photos / "blue" / "0.png").read_bytes())
    assert prepare(make_config(**options), COMPUTE).fingerprint != before


def test_a_diverging_loss_raises_an_error_that_suggests_a_lower_rate(trained, tmp_path):
    with pytest.raises(TrainingError, match=r"lower --lr \(1e\+06\)"):
        trained(mode="full", lr=1e6, epochs=3, execution=ExecutionConfig(COMPUTE, tmp_path))


def test_a_batch_of_one_image_is_refused_with_batchnorm(trained):
    with pytest.raises(DataError, match="batch of one"):
        trained(mode="full", batch_size=1)
    trained(mode="full", batch_size=1, norm="frozen", epochs=1)


def test_activations_that_do_not_fit_on_the_disk_are_refused(trained, monkeypatch):
    full = data.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: full)
    with pytest.raises(StorageError, match="lower --views"):
        trained(mode="deep")


def test_the_best_epoch_on_validation_is_kept(trained):
    """Early stopping may only stop after the best epoch."""
    done = trained(mode="shallow", epochs=6, lr=0.05)
    scores = [epoch.val.top1 for epoch in done.history]
    kept = trained(mode="shallow", epochs=6, lr=0.05, patience=1)
    assert len(kept.history) <= len(done.history)
    assert max(scores) == max(epoch.val.top1 for epoch in done.history)


def test_val_zero_moves_validation_images_to_train(make_config):
    prepared = prepare(make_config(val=0), COMPUTE)
    assert set(prepared.images.splits) == {"train", "test"}


def test_a_class_with_one_image_stays_in_train(make_config, photos):
    for image in sorted(photos.glob("red/*.png"))[1:]:
        image.unlink()
    images = split_validation(
        make_config(data=str(photos), limit=None, split="70/0/30").request.load_images(),
        0.3,
        seed=0,
    )
    red = images.classes.index("red")
    assert (images.splits[images.labels == red] == "train").all()


@pytest.mark.parametrize("balance", ["reweight", "resample", "logit-adjust"])
def test_each_imbalance_correction_changes_the_classifier(trained, photos, balance):
    """Compared with training without a correction."""
    for image in sorted(photos.glob("red/*.png"))[2:]:
        image.unlink()
    options = {"data": str(photos), "limit": None, "mode": "shallow", "val": 0}
    assert differing(state(trained(**options)), state(trained(**options, balance=balance))) == {
        "coef",
        "intercept",
    }


def test_ema_keeps_the_averaged_weights(trained):
    assert differing(
        state(trained(mode="shallow", val=0)), state(trained(mode="shallow", ema=0.99, val=0))
    ) == {
        "coef",
        "intercept",
    }


def test_the_history_has_a_row_for_each_epoch(trained):
    rows = list(history_rows(trained(mode="shallow", epochs=3).history))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {"train_loss", "train_top1", "train_top5", "val_loss", "val_top1", "val_top5"} <= rows[
        0
    ].keys()


@pytest.mark.parametrize(
    "wrong", [{"mode": "medium"}, {"lr": -1}, {"optimiser": "lbfgs"}, {"mixup": 1e9}, {"epochs": 0}]
)
def test_an_invalid_training_setting_is_refused(make_config, wrong):
    with pytest.raises(SpecError):
        make_config(**wrong)


def test_training_on_perturbed_images_is_refused(make_config):
    with pytest.raises(SpecError, match="leave --perturb out"):
        make_config(perturb="fog:level=mild")


DISTRIBUTED = (
    PROGRAM.split("loop._CHECKPOINT")[0]
    + """
from featkit.training.distributed import join_process_group
out = Path(sys.argv[1])
request = Request(
    data="digits",
    limit="train=40,val=10,test=20",
    resize="8",
    backbone="resnet18:stem=small,norm=none",
    weights="random:3",
    precision="fp32",
)
config = TrainingConfig(
    mode="full", epochs=2, batch_size=8, lr=1e-3, augment="shift", views=2, request=request,
    cache=out / "cache",
)
compute = Compute(device="cpu")
with join_process_group("cpu") as group:
    done = finetune(prepare(config, compute), ExecutionConfig(compute, out, group=group))
    if not group.rank:
        losses = [epoch.train.loss for epoch in done.history]
        (out / f"{group.size}.json").write_text(json.dumps([done.coef.tolist(), losses]))
"""
)


def test_two_processes_give_the_weights_of_one(tmp_path):
    """Up to the order of summation."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = tmp_path / "program.py"
    program.write_text(DISTRIBUTED)
    subprocess.run(
        [sys.executable, program, tmp_path], check=True, capture_output=True, env=environment
    )
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        program,
        tmp_path,
    ]
    subprocess.run(run, check=True, capture_output=True, env=environment)
    one, two = (json.loads((tmp_path / f"{size}.json").read_text()) for size in (1, 2))
    np.testing.assert_allclose(one[0], two[0], atol=2e-4)
    np.testing.assert_allclose(one[1], two[1], rtol=1e-4)
