"""The HTML report of a run."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import defaultdict
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import featkit
from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError, StorageError
from featkit.evaluation import evaluate
from featkit.evaluation.scoring import accuracy_without
from featkit.plots.cam import overlay
from featkit.reports.pictures import reliability_plot
from featkit.reports.run import headline, run_report
from featkit.studies.inspect import inspect_run

MARKUP = "<img src=x onerror=alert(1)>"


VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Elements of a page with their attributes, text and parents."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.parents = defaultdict(list)
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.parents[tag].append([self.elements[number][0] for number in self.open])
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag, f"</{tag}> closes another element"

    def handle_data(self, text):
        for number in self.open:
            self.texts[number] += text

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def names(self, tag):
        """Return the name that a screen reader reads for each of these elements."""
        found = []
        for (name, attributes), text in zip(self.elements, self.texts, strict=True):
            if name == tag:
                found.append(attributes.get("aria-label") or text.strip())
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    names = [MARKUP.replace("/", ""), "rtl \u202egpj", "=1+1"]
    for split, count in (("train", 6), ("test", 5)):
        for name in names:
            (folder / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / split / name / f"{number}.png")
    untested = folder / "photos" / "train" / "zz untested"
    shutil.copytree(folder / "photos" / "train" / "=1+1", untested)
    featkit.fit(
        folder / "photos",
        backbone="resnet18",
        weights="random",
        resize="64",
        crop="64",
        tune=True,
        head="knn",
        precision="bf16",
        reject=0.2,
        cache=folder / "cache",
        out=folder / "runs",
    )
    featkit.extract(
        folder / "photos",
        backbone="resnet18",
        weights="random",
        resize="64",
        crop="64",
        precision="fp32",
        cache=folder / "cache",
    )
    (directory,) = (folder / "runs" / "photos").glob("*/")
    path = featkit.report(directory, cache=folder / "cache", projection="pca")
    assert path == directory / "report.html"
    return folder, directory, path.read_text(encoding="utf-8")


def test_the_page_refers_to_nothing_outside(made):
    page = Page(made[2])
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
    assert "http://" not in made[2]
    assert "https://" not in made[2]
    (policy,) = [each["content"] for each in page.all("meta") if each.get("http-equiv") is not None]
    assert "default-src 'none'" in policy


def test_text_from_the_data_is_escaped(made):
    assert MARKUP not in made[2]
    assert "\u202e" not in made[2]
    assert not [each for each in Page(made[2]).all("img") if each.get("onerror")]


def test_every_image_and_control_has_a_name(made):
    page = Page(made[2])
    assert page.all("img")
    assert all(each.get("alt") for each in page.all("img"))
    for each in page.all("svg"):
        assert each.get("aria-hidden") == "true" or each.get("aria-label")
    assert all(each.get("aria-label") for each in page.all("canvas"))
    assert page.all("html")[0]["lang"] == "en"


def test_everything_that_can_be_used_is_reachable_by_keyboard_and_has_a_name(made):
    page = Page(made[2])
    for tag, attributes in page.elements:
        scrolls = "scroll" in attributes.get("class", "").split()
        if scrolls or tag == "canvas":
            assert attributes.get("tabindex") == "0", attributes
            assert attributes.get("role") in ("region", "img")
            assert attributes.get("aria-label"), attributes
        assert int(attributes.get("tabindex") or 0) <= 0, (
            "the order of the page is that of its text"
        )
        assert not [name for name in attributes if name.startswith("on")]
    ids = [each["id"] for _, each in page.elements if each.get("id") is not None]
    assert len(ids) == len(set(ids))
    names = {"button": page.names("button"), "summary": page.names("summary")}
    assert names["button"]
    assert all(all(found) for found in names.values()), names
    assert all("label" in parents for parents in page.parents["select"])


def test_headings_skip_no_level(made):
    levels = [int(tag[1]) for tag, _ in Page(made[2]).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_sections_of_the_navigation_exist(made):
    page = Page(made[2])
    targets = {each["href"][1:] for each in page.all("a")}
    ids = {each.get("id") for _, each in page.elements}
    assert {"result", "mistakes", "confusion", "map", "search", "use"} <= targets <= ids


def test_the_data_of_the_embedding_map_are_whole(made):
    (text,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', made[2], re.S)
    data = json.loads(text)
    n = 15
    assert all(len(data[name]) == n for name in ("x", "y", "true", "predicted", "names"))
    assert data["pictures"] == n
    assert min(data["x"]) >= 0
    assert max(data["x"]) <= 1000
    assert data["sprite"].startswith("data:image/jpeg;base64,")
    assert set(data["true"]) == {0, 1, 2}


def test_the_headline_says_accuracy_interval_and_n(made):
    report = json.loads((made[1] / "results.json").read_text(encoding="utf-8"))
    low, high = report["interval95"]
    assert f"Of {report['n']} test images" in made[2]
    assert f"{100 * report['top1']:.1f}%" in made[2]
    assert f"between {100 * low:.1f} and {100 * high:.1f}%" in " ".join(made[2].split())


def test_a_run_of_lower_precision_is_compared_with_float32(made):
    section = page_section(made[2], "precision")
    assert "features in bf16" in section
    assert "Difference bf16 - float32" in section
    assert "n = 15" in section
    (cosine,) = re.findall(r"mean (\d\.\d+)", section)
    assert 0.99 < float(cosine) <= 1


def test_without_float32_features_the_page_says_how_to_get_them(made, tmp_path):
    folder, directory, _ = made
    (tmp_path / "cache").mkdir()
    fingerprint = json.loads((directory / "results.json").read_text(encoding="utf-8"))[
        "provenance"
    ]["fingerprint"]
    (own,) = (folder / "cache").glob(f"*-{fingerprint[:12]}.h5")
    shutil.copy(own, tmp_path / "cache")
    path = featkit.report(
        directory,
        cache=tmp_path / "cache",
        out=tmp_path / "page.html",
        projection="pca",
        heat_maps=False,
    )
    text = path.read_text(encoding="utf-8")
    assert 'id="precision"' not in text
    assert "--precision fp32" in text


def test_the_coverage_reached_on_the_test_images_is_named(made):
    found = json.loads((made[1] / "results.json").read_text(encoding="utf-8"))["rejection"]
    section = page_section(made[2], "calibration")
    assert "rejects 20.0% of the validation images" in section
    assert f"{100 * found['coverage']:.1f}% (" in section
    assert f"n = {found['answered']}" in section


def test_a_class_without_test_images_is_named_as_such(made):
    assert "no test image" in page_section(made[2], "classes")
    assert "zz untested" in page_section(made[2], "classes")


def test_every_confused_pair_is_in_a_table(made):
    confusion = np.array(
        json.loads((made[1] / "results.json").read_text(encoding="utf-8"))["confusion"]
    )
    pairs = np.count_nonzero(confusion) - np.count_nonzero(np.diag(confusion))
    table = page_section(made[2], "confusion").split("All confused classes", 1)[1]
    assert table.count("<tr>") == pairs + 1


@pytest.fixture(scope="module")
def inspection(made):
    folder, directory, _ = made
    return inspect_run(
        featkit.load_run(directory),
        cache=folder / "cache",
        compute=Compute(),
        projection="pca",
        heat_maps=False,
    )


def with_report(inspection, report):
    """Return an inspection with another report, and without what belongs to its own report."""
    report = replace(report, provenance=inspection.report.provenance)
    return replace(
        inspection, report=report, mistakes=(), uncertain=(), confused=(), embedding_map=None
    )


def test_a_page_of_two_hundred_classes_is_small_and_whole(inspection):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 200, 3_000)
    scores = rng.random((3_000, 200)) + 0.8 * np.eye(200)[y]
    report = evaluate(
        scores / scores.sum(axis=1, keepdims=True), y, [f"class {n}" for n in range(200)]
    )
    text = run_report(with_report(inspection, report))
    page = Page(text)
    assert len(text) < 5e6
    cells = [each for each in page.all("rect") if "fill-h" in each.get("class", "")]
    assert len(cells) == np.count_nonzero(report.confusion)
    assert "class 199" in page_section(text, "classes")
    assert "Classes that are confused are next to each other" in page_section(text, "confusion")


def test_a_head_without_probabilities_has_a_page_without_calibration(inspection):
    report = evaluate(5 * np.eye(3)[[0, 1, 2, 0]] - 2, [0, 1, 2, 2], ["a", "b", "c"])
    assert report.reliability == ()
    unknown = replace(inspection.mistakes[0], confidence=float("nan"))
    found = replace(with_report(inspection, report), mistakes=(unknown,))
    text = run_report(found)
    assert "This head gives no probabilities." in page_section(text, "calibration")
    assert "<svg" not in page_section(text, "calibration")
    assert "nan" not in page_section(text, "mistakes")
    with pytest.raises(DataError, match="no probabilities"):
        reliability_plot(report, title="")


def test_the_name_of_a_run_is_in_its_title(inspection):
    named = replace(inspection, run=replace(inspection.run, name="best <b>head</b>"))
    assert "<h1>best &lt;b&gt;head&lt;/b&gt;: photos" in run_report(named)


def test_two_classes_with_one_missing_in_test_have_a_page(inspection):
    report = evaluate(np.array([[0.9, 0.1], [0.2, 0.8]]), [0, 0], ["seen", "unseen"])
    text = run_report(with_report(inspection, report))
    assert "no test image" in page_section(text, "classes")
    Page(text)


def page_section(text, name):
    """Return the section under the heading of this id."""
    return " ".join(text.split(f'<h2 id="{name}">')[1].split("</section>")[0].split())


def test_the_same_run_gives_the_same_page(made):
    folder, directory, text = made
    path = featkit.report(directory, cache=folder / "cache", projection="pca")
    assert path.read_text(encoding="utf-8") == text
    featkit.load_run(directory)  # the page in the run directory does not invalidate it


def test_a_page_that_cannot_be_written_is_an_error(made, tmp_path):
    folder, directory, _ = made
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        featkit.report(
            directory,
            cache=folder / "cache",
            out=tmp_path / "file" / "report.html",
            projection="pca",
            heat_maps=False,
        )


def test_an_overlay_shows_the_image_where_the_map_is_not_positive():
    image = np.full((4, 4, 3), 100, np.uint8)
    heat = np.zeros((4, 4))
    np.testing.assert_array_equal(overlay(image, heat), image)
    heat[0, 0], heat[1, 1] = 2.0, -2.0
    mixed = overlay(image, heat)
    assert (mixed[1, 1] == 100).all()
    assert (mixed[0, 0] != 100).any()


def test_the_headline_names_test_images_that_are_copies_of_training_images() -> None:
    report = evaluate(np.eye(2)[[0, 0, 1, 0]], [0, 0, 1, 1], ["a", "b"])
    assert "copies" not in headline(report)
    copied = np.array([True, False, False, False])
    correct = np.array([True, True, True, False])
    report = replace(report, without_copies=accuracy_without(correct, copied))
    assert "1 of these images are copies of training images" in headline(report)
    assert "For the other 3 it named the right class for 66.7% (" in headline(report)
