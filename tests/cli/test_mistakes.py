"""Mistakes of new users: what each command says about them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featkit.ablation import estimate
from featkit.ablation.grid import BUILT_IN, Grid
from featkit.cli import main
from featkit.cli.main import COMMANDS, _message
from featkit.errors import FeatkitError, WeightsError

FAST = ("--weights", "random", "--resize", "32")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def call(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def error(*arguments, code=1):
    """Return the error of a command that fails with one line."""
    stderr = call(*arguments, code=code).stderr
    (line,) = (line for line in stderr.splitlines() if line.startswith("Error: "))
    assert stderr.rstrip().endswith(line)
    return line.removeprefix("Error: ")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return a folder with the results of two runs on the same images."""
    root = tmp_path_factory.mktemp("results")
    for place, name in enumerate(("blue", "green", "red")):
        (root / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.full((20, 24, 3), number, np.uint8)
            pixels[..., 2 - place] += 150
            Image.fromarray(pixels).save(root / "photos" / name / f"{number}.png")
    common = ("--data", root / "photos", *FAST, "--cache", root / "cache", "--out", root / "runs")
    call("fit", *common, "--head", "prototypical", "--head", "knn:k=1")
    return root / "runs"


@pytest.fixture
def runs(results):
    """Return the directories of two runs, by default where `featkit fit` writes them."""
    shutil.copytree(results, "experiments/runs")
    return sorted(Path("experiments/runs/photos").iterdir())


# predict ------------------------------------------------------------------------------------------


def test_predict_says_what_to_give_in_place_of_a_run(photos, runs):
    run, image = runs[0], photos / "red" / "0.png"
    assert error("predict", image, run) == (
        f"{image} is not a run directory but a file: give the directory that `featkit fit` printed, and then "
        "the images, as in `featkit predict RUN IMAGE`"
    )
    for name in ("head.skops", "card.json", "confusion.png"):
        message = error("predict", run / name, image)
        assert message == f"{run / name} is a file of a run: give the directory, {run}"
    assert "red" in call("predict", run.name, image).stdout
    assert "red" in call("predict", run.name[:6], image).stdout
    assert "a folder of runs: give one, such as" in error("predict", run.parent, image)
    assert "a folder of runs: give one, such as" in error("predict", "experiments/runs", image)
    assert "there is no run nowhere: " in error("predict", "nowhere", image)
    assert "there is no run at runs/nowhere" in error("predict", "runs/nowhere", image)
    assert "card.json is missing" in error("predict", photos, image)


def test_a_name_with_a_pattern_matches_no_run(runs):
    for name in ("*", "[0-9a-f]*", "?"):
        assert "there is no run " in error("predict", name, "x.png")


# fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["fit", "fewshot", "audit", "ablate"])
def test_a_cache_folder_that_does_not_exist_is_an_error_without_images(command):
    message = error(command, "--cache", "cahce", *FAST)
    assert message.startswith("cache folder cahce does not exist")
    assert not Path("cahce").exists()
    assert not Path("experiments").exists()


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_a_cache_folder_that_does_not_exist_is_not_an_empty_one(command):
    assert "cahce does not exist" in error("cache", command, "--cache", "cahce")
    assert call("cache", command).exit_code == 0


def test_a_new_cache_folder_is_made_for_images_that_are_named(photos):
    call("fit", "--data", photos, *FAST, "--cache", "new", "--head", "prototypical")
    assert list(Path("new").glob("*.h5"))


def test_fit_says_which_images_and_network_it_uses_before_it_starts(photos, monkeypatch):
    class StartedError(Exception):
        pass

    def start(*arguments):
        raise StartedError

    monkeypatch.setattr("featkit.embeddings.extract.Extractor.extract", start)
    done = CliRunner().invoke(main, ["fit", *FAST])
    assert isinstance(done.exception, StartedError)
    assert done.stderr == (
        "using data digits (the default, since no cache file matches; use --data for other images),"
        " backbone resnet18 (the default)\n"
    )
    done = CliRunner().invoke(main, ["fit", "--data", str(photos), *FAST])
    assert done.stderr == "using backbone resnet18 (the default)\n"


# compare ------------------------------------------------------------------------------------------


def test_compare_leaves_out_other_folders_and_says_so(photos, runs):
    call("fit", "--data", photos, *FAST, "--head", "prototypical", "--seeds", "2")
    call("audit", "--data", photos, *FAST, "--out", "experiments/runs/photos")
    folders = sorted(Path("experiments/runs/photos").iterdir())
    others = [path for path in folders if not (path / "card.json").exists()]
    assert {path.name.partition("-")[0] for path in others} == {"seeds", "audit"}
    done = call("compare", *runs, *others)
    assert done.stderr == f"left out, not runs: {', '.join(map(str, others))}\n"
    assert done.stdout == call("compare", *runs).stdout
    assert "is not a run directory" in error("compare", runs[0], others[0])
    assert "there is no run nowhere: " in error("compare", *runs, "nowhere")
    (runs[1] / "card.json").unlink()
    (runs[1] / "results.json").unlink()
    assert "results.json is missing" in error("compare", *runs)


def test_a_run_is_not_compared_with_itself(runs):
    run = runs[0]
    for again in (run, run / ".." / run.name, run.resolve()):
        assert error("compare", run, again) == (
            f"{again} is given twice: a run cannot be compared with itself"
        )
    assert "is given twice" in error("compare", *runs, run)


# ablate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "value", "message"),
    [
        ("head", "svn", "unknown head 'svn': did you mean svm?"),
        ("head", "svm:X=1", "unknown option of head svm 'X'"),
        ("head", "svm:C=-1", "head 'svm:C=-1'"),
        ("balance", "smoot", "unknown correction 'smoot'"),
        ("subset", "kshots:k=5", "unknown subset 'kshots'"),
        ("perturb", "frog:level=mild", "unknown perturbation 'frog': did you mean fog?"),
        ("train-perturb", "fog", "has no level"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_a_mistyped_value_of_a_grid_is_refused_before_it_starts(photos, axis, value, message, dry):
    option = ("--dry-run",) if dry else ()
    known = ("--head", "prototypical") if axis == "head" else ()
    arguments = ("ablate", "--data", photos, *FAST, *known, f"--{axis}", value, *option)
    assert message in error(*arguments)
    Path("grid.toml").write_text(
        f'[axes]\ndata = ["{photos}"]\nweights = ["random"]\n{axis.replace("-", "_")} = ["{value}"]'
    )
    assert message in error("ablate", "grid.toml", *option)
    assert not Path("experiments").exists()


def test_a_dry_run_counts_the_heads_that_are_fitted(photos):
    """Corrections that do not apply to a head are not counted as fits."""
    grid = ("--data", photos, *FAST, "--head", "prototypical", "--head", "knn:k=1")
    balance = ("--balance", "none", "--balance", "reweight", "--balance", "logit_adjust")
    said = call("ablate", *grid, *balance, "--dry-run").stdout
    cells, fits = map(int, re.search(r"(\d+) cells, .* (\d+) heads to fit", said).groups())
    assert cells == 6
    result = json.loads(call("ablate", *grid, *balance, "--jobs", 1, "--json").stdout)
    assert fits == sum(cell["status"] == "ok" for cell in result["cells"]) < cells
    for cell in result["cells"]:
        if cell["status"] == "skipped":
            assert f"unavailable: {cell['reason']}" in said


def test_a_dry_run_runs_no_network(photos, monkeypatch):
    def run(*arguments, **options):
        raise AssertionError("a network runs")

    monkeypatch.setattr("featkit.ablation.estimate.embed", run)
    done = call("ablate", "--data", photos, *FAST, "--head", "prototypical", "--dry-run")
    assert "24 images\n" in done.stdout
    assert "time with" in done.stdout
    assert "unknown; --measure measures" in done.stdout


def test_throughput_is_measured_on_enough_images_or_not_at_all(photos):
    """A batch that ends right after the first one would give any number of images per second."""
    grid = ("ablate", "--data", photos, *FAST, "--head", "prototypical", "--dry-run", "--measure")
    workers = ("--workers", 2)
    for size in (1, 4, 5, 23, 24):
        said = call(*grid, *workers, "--batch-size", size).stdout
        measured = re.search(r"(\S+) images/s measured on (\d+)", said)
        # A round of two batches to warm up and two that are timed.
        assert (measured is not None) == (6 * size <= 24)
        if measured:
            assert int(measured[2]) == 4 * size
            assert 0 < float(measured[1]) < 1e6
    assert "--measure needs --dry-run" in error(*grid[:-2], "--measure", code=2)


def test_estimates_of_grids_without_any_image_to_extract_measure_nothing(photos, tmp_path):
    from featkit.ablation.run import AblationConfig
    from featkit.embeddings.pipeline import Compute

    call("extract", "--data", photos, *FAST)
    axes = {**BUILT_IN, "data": (str(photos),), "weights": ("random",)}
    config = AblationConfig(tmp_path / "out", Path("cache"), Compute())
    found = estimate.estimate(Grid("heads", axes, {"resize": "32"}), config)
    assert (found.files, found.networks) == (1, ())


def test_a_group_of_commands_without_a_command_prints_its_help():
    done = call("cache", code=2)
    assert "\n  verify  Verify files" in done.stdout + done.stderr


# Paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("fit", "--data", "{}"),
        ("fit", "--data", "photos", "--cache", "{}"),
        ("fit", "--backbone", "{}", "--data", "digits"),
        ("extract", "--weights", "{}.pth"),
        ("predict", "{}", "x.jpg"),
        ("compare", "{}", "{}x"),
        ("ablate", "{}.toml"),
        ("cache", "show", "{}.h5"),
        ("cache", "import", "{}.csv"),
        ("export", "{}"),
    ],
)
def test_a_path_that_the_system_refuses_is_one_line(arguments):
    name = "x" * 5000
    message = error(*(each.format(name) for each in arguments))
    assert "\n" not in message


# Advice -------------------------------------------------------------------------------------------


def message_for(command, raised):
    ctx = click.Context(main)
    ctx.invoked_subcommand = command
    return _message(raised, main, ctx)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_advises_options_that_it_does_not_have(command):
    fixes = [
        "copy them",
        "give a file with --weights FILE",
        "use --layer NAME",
        "use `featkit fit --seed 1`",
    ]
    shown = message_for(command, WeightsError("no weights", fixes=fixes))
    own = main.get_command(click.Context(main), command)
    commands = getattr(own, "commands", {"": own}).values()
    options = {name for each in commands for parameter in each.params for name in parameter.opts}
    assert "copy them" in shown
    assert "`featkit fit --seed 1`" in shown
    for option in ("--weights", "--layer"):
        assert (option in shown) == (option in options)


def test_a_message_that_names_a_foreign_option_says_so():
    raised = FeatkitError("no layers: remove --layer, see `featkit models --layers resnet18`")
    assert message_for("fit", raised) == str(raised)
    assert message_for("predict", raised) == f"{raised} (`featkit predict` has no --layer)"


def test_predict_does_not_advise_to_give_weights(photos, tmp_path, monkeypatch):
    """The weights of a run cannot be chosen when it predicts."""
    from featkit.backbones.weights import hub_folder

    monkeypatch.setattr("torch.hub.download_url_to_file", _no_network)
    call("fit", "--data", photos, *FAST, "--head", "prototypical")
    (run,) = Path("experiments/runs/photos").iterdir()
    assert "--weights" in error(
        "fit", "--data", photos, "--backbone", "resnet18", "--weights", "imagenet"
    )
    card = json.loads((run / "card.json").read_text())
    from featkit.runs.card import seal

    card["request"]["weights"] = "imagenet"
    (run / "card.json").write_text(json.dumps({**card, "sha256": seal(card)}))
    message = error("predict", run, photos / "red" / "0.png")
    assert "copy that file into the folder in FEATKIT_WEIGHTS" in message
    assert "--weights" not in message
    shutil.rmtree(hub_folder(), ignore_errors=True)


def _no_network(*arguments, **options):
    raise OSError("no network")
