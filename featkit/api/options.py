"""Kinds of the options that several functions share, and the requests made of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.arguments import (
    DEPTH,
    FLAG,
    MAX_COUNT,
    NAME,
    PATH,
    SEED,
    SIZE,
    Kind,
    instance,
    integer,
    number,
    sequence,
    several,
    text,
)

if TYPE_CHECKING:
    from featkit.embeddings.pipeline import Compute
    from featkit.embeddings.request import Request

OUT = "experiments/runs"
"""Default folder for results."""


log = logging.getLogger("featkit")
log.addHandler(logging.NullHandler())  # messages are shown only where a program asks for them


PathLike = str | Path


Strings = str | Sequence[str]


IMAGE_OPTIONS = {
    "data": PATH,
    "split": text("70/15/15"),
    "limit": text("train=500,test=100"),
    "intensity_range": text("0:4095"),
    "group": text("parent"),
    "allow_group_leak": FLAG,
    "seed": SEED,
    "augment": text("basic"),
    "views": integer(1, 100),
    "perturb": text("fog:level=strong"),
}


NETWORK_OPTIONS = {
    "backbone": PATH,
    "weights": PATH,
    "layer": text("layer4"),
    "pool": text("avg"),
    "resize": SIZE,
    "crop": SIZE,
    "precision": text("fp32"),
    "decode": text("full"),
}


COMPUTE_OPTIONS = {
    "device": text("cpu"),
    "batch_size": integer(1),
    "workers": integer(1),
    "engine": text("torch"),
    "compile": FLAG,
    "rehash": FLAG,
    "on_error": text("skip"),
    "progress": FLAG,
}


FEATURE_OPTIONS = {
    **IMAGE_OPTIONS,
    **NETWORK_OPTIONS,
    **COMPUTE_OPTIONS,
    "cache": PATH,
    "out": PATH,
}


GRID_OPTIONS = {
    **FEATURE_OPTIONS,
    "data": several(PATH, least=1),
    "seed": several(SEED, least=1),
    "subset": several(text("longtail:if=50"), least=1),
    "perturb": several(text("fog:level=strong"), least=1),
    "train_perturb": several(text("mixed:level=mild"), least=1),
    "backbone": several(PATH, least=1),
    "weights": several(PATH, least=1),
    "layer": several(text("layer4"), least=1),
    "precision": several(text("fp32"), least=1),
    "head": several(text("svm:C=9"), least=1),
    "balance": several(text("logit-adjust"), least=1),
    "jobs": integer(1),
    "cluster": text("local:4"),
}


def run_or_path() -> Kind:
    """Return the kind of a run: its directory, or a run in memory."""

    def convert(value: Any) -> Any:
        if isinstance(value, str | PathLike):
            return PATH.convert(value)
        from featkit.runs.directory import SavedRun
        from featkit.runs.fit import Run
        from featkit.runs.multilabel import MultiLabelRun

        return instance(Run, MultiLabelRun, SavedRun).convert(value)

    return Kind("the path of a run directory, or a run", convert)


def images_or_path() -> Kind:
    """Return the kind of images: a spec, a path, or an ``ImageSet``."""

    def convert(value: Any) -> Any:
        if isinstance(value, str | PathLike):
            return PATH.convert(value)
        from featkit.images.base import ImageSet

        return instance(ImageSet).convert(value)

    return Kind("a spec or path of images as text or pathlib.Path, or an ImageSet", convert)


def decisions_or_path() -> Kind:
    """Return the kind of decisions about images: a CSV file, or ``Decision`` objects."""

    def convert(value: Any) -> Any:
        if isinstance(value, str | PathLike):
            return PATH.convert(value)
        from featkit.studies.clean import Decision

        return sequence(instance(Decision)).convert(value)

    return Kind("the path of a decisions file, or a sequence of Decision", convert)


def comparable() -> Kind:
    """Return the kind of results that have a table."""

    def convert(value: Any) -> Any:
        from featkit.ablation.run import AblationResult
        from featkit.runs.compare import RunComparison

        return instance(AblationResult, RunComparison).convert(value)

    return Kind("the result of compare, ablate, longtail or robustness", convert)


def training_kinds() -> dict[str, Kind]:
    """Return the kinds of the options of a training, whose ranges ``TrainingConfig`` declares."""
    from featkit.training.config import option_fields

    kinds: dict[str, Kind] = {}
    for each in option_fields():
        option = each.metadata["option"]
        if str(each.type).startswith("int"):
            high = MAX_COUNT if option.high is None else int(option.high)
            kinds[each.name] = integer(int(option.low or 0), high)
        elif str(each.type).startswith("float"):
            kinds[each.name] = number(option.low or 0, option.high)
        else:
            kinds[each.name] = text(option.choices[0] if option.choices else "layer4")
    kinds |= {"seed": SEED, "name": NAME}
    return {
        **FEATURE_OPTIONS,
        **kinds,
        "unfreeze": DEPTH,
        "frozen_precision": text("fp32"),
        "resume": FLAG,
    }


def request_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are fields of ``Request``; None where one was not given."""
    from featkit.embeddings.request import Request

    found = {field.name: options[field.name] for field in fields(Request) if field.name in options}
    for name in ("data", "backbone", "weights", "resize", "crop"):
        if found.get(name) is not None:
            found[name] = str(found[name])  # a path, or a size in pixels
    if found.get("backbone") is not None:
        found["backbone"] = network_spec(found["backbone"])
    return found


def network_spec(spec: str) -> str:
    """Return the spec of a network; the name of a run becomes the path of its directory."""
    from featkit.backbones.load import BACKBONES
    from featkit.runs.registry import find_network

    return spec if spec.partition(":")[0] in BACKBONES.names() else find_network(spec)


def named_network_spec(spec: str) -> str:
    """Return ``network_spec`` of a spec with an optional ``@PRECISION``."""
    name, at, precision = spec.rpartition("@")
    return f"{network_spec(name)}@{precision}" if at else network_spec(spec)


def make_request(options: Mapping[str, Any]) -> Request:
    """Return the request of the options, with its own defaults where one was not given."""
    from featkit.embeddings.request import Request

    given = request_options(options)
    return Request(**{name: value for name, value in given.items() if value is not None})


def make_compute(options: Mapping[str, Any]) -> Compute:
    """Return the compute options."""
    from featkit.embeddings.pipeline import Compute

    return Compute(
        device=options["device"],
        batch_size=options["batch_size"],
        workers=options["workers"],
        engine=options["engine"],
        compiled=options["compile"],
        rehash=bool(options.get("rehash", False)),
        on_error=options["on_error"],
        progress=options["progress"],
    )


def correction_spec(spec: str | None) -> str | None:
    """Return the spec of a correction with underscores in its name, as runs and cells record it."""
    from featkit.heads import parse_correction

    if spec is None or "-" not in spec.partition(":")[0]:
        return spec
    return str(parse_correction(spec))


def correction_specs(specs: Sequence[object]) -> list[str]:
    """Return ``correction_spec`` of several specs."""
    return [str(correction_spec(str(spec))) for spec in specs]


def as_strings(values: Strings | Path | Sequence[PathLike] | None) -> tuple[str, ...]:
    """Return one string or several as a tuple."""
    if values is None:
        return ()
    if isinstance(values, str | Path):
        return (str(values),)
    return tuple(map(str, values))
