"""The public functions: names, defaults, return values and written files."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

import featkit
from featkit import api
from featkit.cli.main import COMMANDS, main

FAST = {"backbone": "resnet18", "weights": "random", "resize": "32"}

PUBLIC = [
    "Compute",
    "Embeddings",
    "FeatkitError",
    "ImageEmbedder",
    "ImageSet",
    "Report",
    "ablate",
    "audit",
    "bundle",
    "compare",
    "compare_frameworks",
    "distill",
    "evaluate",
    "export",
    "extract",
    "fewshot",
    "finetune",
    "fit",
    "load_backbone",
    "load_images",
    "load_run",
    "longtail",
    "make_head",
    "neighbours",
    "plot",
    "predict",
    "profile",
    "prune",
    "publication_table",
    "quantize",
    "report",
    "robustness",
    "suggest",
    "train",
]

EXTRACTION = "split limit intensity_range group allow_group_leak seed augment views perturb backbone weights layer pool resize crop precision decode"
COMPUTE = "device batch_size workers engine compile on_error progress"
GRID = (
    "data split limit intensity_range group allow_group_leak seed subset augment views perturb train_perturb backbone weights layer pool resize crop "
    f"precision head tune balance jobs cluster cache out {COMPUTE}"
)
SCHEDULE = (
    "mode unfreeze weights resize crop split limit intensity_range group allow_group_leak seed augment views val epochs batch_size optimiser lr layer_decay "
    "weight_decay warmup smoothing mixup cutmix ema clip balance norm patience precision frozen_precision name resume "
    "device cache out progress"
)
SIGNATURES = {
    "extract": f"data {EXTRACTION} store cache rehash cluster {COMPUTE}",
    "fit": f"data head tune balance subset reject strict folds repeats unknown cost {EXTRACTION} store name cache out {COMPUTE}",
    "predict": f"run files top all_probabilities sort_into {COMPUTE}",
    "compare": "runs",
    "export": f"run format out check data {COMPUTE}",
    "ablate": f"grid {GRID}",
    "longtail": f"factors {GRID.replace(' tune', '')}",
    "robustness": f"family level baseline {GRID.replace(' perturb', '')}",
    "fewshot": (
        f"data way shot query episodes head curve draws {EXTRACTION} cache out cluster {COMPUTE}"
    ),
    "audit": f"data few quality decisions apply {EXTRACTION} cache out {COMPUTE}",
    "profile": "backbones data head repeats warm_up split limit intensity_range group allow_group_leak seed augment views perturb weights resize crop cache out "
    f"{COMPUTE}",
    "finetune": f"data backbone cost {SCHEDULE}",
    "compare_frameworks": "data backbone mode seeds weights resize crop split limit deep_limit intensity_range group allow_group_leak seed augment "
    "views val epochs batch_size optimiser lr images repeats cache out progress",
    "distill": f"data teacher teacher_head student loss temperature alpha beta distance alone {SCHEDULE}",
    "prune": "backbone sparsity macs by reconstruct calibrate epochs lr distill head weights data split limit intensity_range group allow_group_leak seed "
    f"augment views perturb resize crop name cache out {COMPUTE}",
    "quantize": "backbone method images keep_fp32 keep_worst bias_correct weight_bits weights layer data split limit intensity_range group allow_group_leak seed augment "
    f"views perturb resize crop name out {COMPUTE}",
    "load_run": "run",
    "bundle": "run",
    "suggest": f"run images n seed cache out {COMPUTE}",
    "neighbours": f"run images k cache out {COMPUTE}",
    "train": f"photos minutes name overwrite backbone weights resize decode split seed cost bundle cache out {COMPUTE}",
    "publication_table": "result format baseline",
    "report": f"run out projection heat_maps seed cache {COMPUTE}",
    "plot": f"kind target images out label colour method thumbnails count seed dpi style weights cache {COMPUTE}",
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_the_public_names_are_pinned():
    assert featkit.__all__ == PUBLIC
    assert set(api.__all__) <= set(PUBLIC)
    assert dir(featkit) == sorted([*PUBLIC, "__version__"])
    assert set(featkit.__all__) <= vars(sys.modules["featkit"]).keys() | featkit._MODULES.keys()


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_parameters_of_a_public_function_are_pinned(name):
    function = getattr(featkit, name)
    parameters = inspect.signature(function).parameters
    assert set(parameters) == set(SIGNATURES[name].split())
    assert all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    documented = inspect.getdoc(function)
    assert all(parameter in documented for parameter in parameters)


ONLY_COMMAND_LINE = {
    "as_json",
    "as_csv",
    "bundle",
    "dry_run",
    "explain",
    "help",
    "latex",
    "markdown",
    "measure",
    "report",
    "seeds",
    "shard",
    "study",
    "top",
}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name in SIGNATURES])
def test_options_of_a_command_are_parameters_of_its_function(name):
    """Options have the same names on the command line and in Python."""
    command = main.get_command(click.Context(main), name)
    options = {parameter.name for parameter in command.params} - ONLY_COMMAND_LINE
    if name == "distill":
        options = options - {"backbone"} | {"student"}
    if name == "audit":
        options -= {"strict"}
    assert options <= set(SIGNATURES[name].split())


def test_defaults_agree_between_command_line_and_functions():
    for name in SIGNATURES:
        if name not in COMMANDS:
            continue
        parameters = inspect.signature(getattr(featkit, name)).parameters
        for option in main.get_command(click.Context(main), name).params:
            known = parameters.get(option.name)
            if known is None or known.default in (None, inspect.Parameter.empty):
                continue
            if isinstance(known.default, tuple) or option.name == "out":
                continue
            default = option.get_default(click.Context(main))
            if not isinstance(default, str | int | float | Path):  # described in the help only
                default = option.show_default
            assert str(default) == str(known.default), (name, option.name)


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(AttributeError, match="did you mean 'fit'"):
        featkit.fitt  # noqa: B018


def test_a_star_import_gives_every_public_name_and_imports_no_torch_before():
    code = """
import sys, featkit
assert "torch" not in sys.modules and "numpy" not in sys.modules
from featkit import *
assert all(name in globals() for name in featkit.__all__)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fit_returns_a_run_and_writes_nothing_unless_asked(photos, capsys):
    run = featkit.fit(str(photos), head="prototypical", **FAST)
    assert run.report.top1 == pytest.approx(1)
    assert not Path("experiments").exists()
    assert capsys.readouterr() == ("", "")
    again = featkit.fit(photos, head="prototypical", out="runs", **FAST)
    assert again.id == run.id
    (directory,) = Path("runs/photos").iterdir()
    saved = featkit.load_run(directory)
    image = photos / "red" / "0.png"
    from_disk, from_memory = featkit.predict(saved, image), featkit.predict(run, [image])
    assert from_disk[0].answer == from_memory[0].answer == "red"


def test_results_can_be_shown_in_a_notebook(photos):
    one = featkit.fit(photos, head="prototypical", out="runs", **FAST)
    two = featkit.fit(photos, head="knn:k=1", out="runs", **FAST)
    assert json.loads(json.dumps(one.to_dict()))["run"] == one.id
    assert "<table" in one._repr_html_()
    found = featkit.compare(sorted(Path("runs/photos").iterdir()))
    assert len(found.to_dict()["pairs"]) == 1
    assert len(found.to_frame()) == 2
    assert "<table" in found._repr_html_()
    assert {one.id, two.id} == {path.name for path in Path("runs/photos").iterdir()}


def test_both_spellings_of_a_correction_give_the_same_run(photos):
    options = {**FAST, "head": "linear"}
    hyphens = featkit.fit(photos, balance="logit-adjust", **options)
    assert hyphens.id == featkit.fit(photos, balance="logit_adjust", **options).id


def test_ablate_returns_a_cell_for_each_combination(photos):
    result = featkit.ablate(
        data=str(photos),
        weights="random",
        resize=32,
        head=["prototypical", "knn:k=1"],
        out="grids",
        jobs=1,
    )
    assert [cell.status for cell in result.cells] == ["ok", "ok"]
    assert len(result.to_frame()) == 2
    assert len(result.to_dict()["cells"]) == 2
    assert "<table" in result._repr_html_()


def test_a_grid_takes_the_same_data_options_as_fit(photos):
    limited = featkit.ablate(
        data=str(photos),
        **{
            **FAST,
            "head": "prototypical",
            "split": "50/0/50",
            "limit": "train=6",
            "subset": "kshot:k=1",
        },
        out="grids",
        jobs=1,
    )
    (cell,) = limited.cells
    run = featkit.fit(
        photos, head="prototypical", split="50/0/50", limit="train=6", subset="kshot:k=1", **FAST
    )
    assert cell.report.top1 == run.report.top1
    assert cell.report.n == run.report.n


def test_all_heads_include_plug_ins(install):
    code = (
        "from featkit.heads.knn import KNNHead\nclass Mine(KNNHead):\n    'A head of a plug-in.'\n"
    )
    install("plugin_heads", code, "[featkit.heads]\nmine = plugin_heads:Mine\n")
    heads = api.expand_heads(["svm", "all"])
    assert heads[0] == "svm"
    assert {"linear", "svm", "knn", "mlp", "prototypical", "mine"} <= set(heads)
    assert len(heads) == len(set(heads))


def test_fewshot_returns_scores_per_head_and_shot(photos):
    result = featkit.fewshot(photos, way=2, shot=[1, 2], query=2, episodes=10, **FAST)
    assert len(result.scores) == 4
    assert result.to_dict()["setting"]["way"] == 2
    assert len(result.to_frame()) == 4
    assert not Path("experiments").exists()


def test_audit_finds_nothing_in_clean_images(photos):
    assert not len(featkit.audit(photos, **FAST).leaks)


@pytest.mark.parametrize(
    "call",
    [
        lambda images: featkit.extract(images, perturb="fog:level=strong", **FAST),
        lambda images: featkit.extract(images, limit="train=5", **FAST),
        lambda images: featkit.fit("digits", head="all", **FAST),
        lambda images: featkit.fewshot("digits", shot=(), **FAST),
        lambda images: featkit.prune("resnet18", macs=0.5, by="colour", weights="random"),
        lambda images: featkit.robustness("digits", baseline="resnet50", **FAST),
    ],
    ids=[
        *("perturb in memory", "limit in memory", "all heads", "no shot", "unknown criterion"),
        "unknown baseline",
    ],
)
def test_arguments_that_make_no_sense_are_refused(call, colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(featkit.FeatkitError):
        call(colours())


def test_a_grid_takes_paths(photos):
    result = featkit.ablate(data=photos, head="prototypical", jobs=1, **FAST)
    assert [cell.status for cell in result.cells] == ["ok"]
