"""Class activation maps of runs with every head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import featkit
from featkit.compression.class_scores import make_class_scores
from featkit.errors import HeadError, SpecError
from featkit.heads import make_head
from featkit.heads.balance import BalancedHead
from featkit.studies.explain import RunExplainer, faithfulness

HEADS = ["linear", "svm", "svm:kernel=linear", "knn", "mlp", "prototypical"]


def features(k=3, n=60, d=8, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    x = np.abs(rng.normal(size=(k, d)))[y] + 0.3 * rng.random((n, d))
    return x.astype(np.float32), y


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("spec", HEADS)
def test_the_score_of_the_predicted_class_is_the_largest(spec, k):
    x, y = features(k)
    head = make_head(spec).fit(x, y)
    scores = make_class_scores(head).module(torch.from_numpy(x)).detach().numpy()
    assert scores.shape == (len(x), k)
    agreement = (scores.argmax(axis=1) == head.predict(x)).mean()
    assert agreement >= (0.95 if spec in ("knn", "svm") else 1.0)


@pytest.mark.parametrize("spec", HEADS)
def test_scores_have_a_derivative_that_is_not_zero(spec):
    x, y = features()
    head = make_head(spec).fit(x, y)
    inputs = torch.from_numpy(x).requires_grad_()
    make_class_scores(head).module(inputs)[:, 1].sum().backward()
    assert inputs.grad.isfinite().all()
    assert inputs.grad.abs().sum(dim=1).min() > 0


@pytest.mark.parametrize("spec", [*HEADS, "linear:scale=none"])
def test_mean_derivatives_explain_the_difference_of_two_scores(spec):
    """Integrated gradients are complete; those of a linear score are its derivative."""
    x, y = features(n=120)
    scores = make_class_scores(make_head(spec).fit(x, y))
    assert scores.is_curved == (spec.partition(":")[0] in ("svm", "knn", "prototypical"))
    baseline = x.mean(axis=0)
    columns = y[:20].astype(np.int64)
    mean = scores.mean_gradients(x[:20], columns, baseline)
    explained = (mean * (x[:20] - baseline)).sum(axis=1)
    with torch.no_grad():
        at_rows = scores.module(torch.from_numpy(x[:20])).numpy()[np.arange(20), columns]
        at_baseline = scores.module(torch.from_numpy(baseline[None])).numpy()[0, columns]
    difference = at_rows - at_baseline
    assert np.abs(explained - difference).max() < 0.1 * np.abs(difference).max()
    if spec == "linear:scale=none":
        np.testing.assert_allclose(mean, scores.gradients(x[:20], columns), rtol=1e-4)


def test_the_score_of_a_corrected_head_is_that_of_the_head_inside():
    x, y = features()
    head = BalancedHead(head="linear", correction="reweight").fit(x, y)
    scores = make_class_scores(head).module(torch.from_numpy(x))
    inner = make_class_scores(head.head_).module(torch.from_numpy(x))
    assert torch.equal(scores, inner)


def test_a_plug_in_head_is_refused_by_name():
    class Other:
        pass

    with pytest.raises(HeadError, match="Other"):
        make_class_scores(Other())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    return featkit.fit(
        "digits",
        backbone="resnet18",
        weights="random",
        resize="64",
        limit="train=60,test=20",
        head="linear:scale=none",
        cache=folder / "cache",
    )


def test_an_exact_map_averages_to_the_logit_without_its_bias(run):
    explainer = RunExplainer(featkit.load_run(run))
    images = run.source.request.load_images()
    rows = images.rows("test")[:3]
    pixels = np.stack([explainer.prepare(images.load(row)) for row in rows])
    found = explainer.explain(pixels)
    scores = make_class_scores(run.head).module
    # The resized map has nearly the mean of the map, since the image is a multiple of it.
    for each, row in zip(found, rows, strict=True):
        x = run.source.embeddings.x[run.source.embeddings.ids.index(images.ids[row])]
        column = run.source.embeddings.classes.index(each.label)
        logits = scores(torch.from_numpy(x[None]))[0]
        bias = float(np.broadcast_to(run.head.intercept_, len(logits))[column])
        assert each.heat.mean() == pytest.approx(float(logits[column]) - bias, rel=0.15, abs=0.05)
        assert each.heat.shape == each.image.shape[:2]


def test_a_map_of_a_curved_score_is_that_of_the_difference_from_a_grey_image(run, tmp_path):
    saved = featkit.load_run(run)
    train = run.source.embeddings.part("train")
    explainer = RunExplainer(replace(saved, head=make_head("knn").fit(train.x, train.y)))
    assert "grey" in explainer.description
    grey = np.full((1, 64, 64, 3), 116, np.uint8)
    assert np.abs(explainer.explain(grey)[0].heat).max() == 0
    images = run.source.request.load_images()
    pixels = explainer.prepare(images.load(images.rows("test")[0]))
    assert np.abs(explainer.explain(pixels[None])[0].heat).max() > 0


def test_a_class_that_was_not_trained_on_is_refused(run):
    explainer = RunExplainer(featkit.load_run(run))
    with pytest.raises(SpecError, match="zebra"):
        explainer.explain(np.zeros((1, 64, 64, 3), np.uint8), ["zebra"])


def test_a_map_of_the_decisive_pixels_is_more_faithful_than_the_opposite():
    """The score of this classifier is the brightness of the left half."""

    def predict(pixels):
        bright = pixels[:, :, :16].mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - bright, bright], axis=1)

    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :16] = np.random.default_rng(0).integers(150, 255, (32, 16, 3))
    heat = np.zeros((32, 32))
    heat[:, :16] = 1
    good, bad = faithfulness(predict, image, heat, 1), faithfulness(predict, image, -heat, 1)
    assert good.deletion < bad.deletion
    assert good.insertion > bad.insertion
