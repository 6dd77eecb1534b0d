"""Names of runs and networks for tables and figures: given by the user, or composed.

A name that the user gave is recorded beside the network or run, in a file that decides neither its
id nor the fingerprint of its features. A composed name says how a network was made, such as
``ResNet-18, pruned to 50% of MACs, int8``; it never contains a digest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from featkit.arguments import printable_line
from featkit.backbones.saved import (
    NETWORK_FILE,
    is_int8,
    is_path,
    network_file,
    read_description,
    read_int8_description,
)
from featkit.errors import FeatkitError, SpecError
from featkit.registry import Spec
from featkit.runs.card import CARD_FILE, read_card
from featkit.storage import read_json, user_path

NAME_FIELD = "display_name"
"""Field of ``prune.json`` and ``quantize.json`` with the name of the network."""

_FACTS_FILES = ("quantize.json", "prune.json")
_KINDS = {
    "deep": "fine-tuned",
    "full": "fine-tuned",
    "shallow": "classifier trained",
    "scratch": "trained from scratch",
    "pruned": "pruned",
    "int8": "int8",
}
"""How the ends of names of saved networks, such as ``resnet18-int8-1a2b3c4d``, are written out."""
_DERIVED = re.compile(rf"-({'|'.join(_KINDS)})-[0-9a-f]{{8}}(?![0-9A-Za-z])")
_DIGEST = re.compile(r" ?\([0-9a-f]{8}\)|\b[0-9a-f]{12}\b")
_RESNET = re.compile(r"\bresnet(\d+)(?::(\w+=\w+(?:,\w+=\w+)*))?(?![\w.:=-])")
_UNREADABLE = (FeatkitError, OSError, AttributeError, KeyError, TypeError, ValueError)
_PRECISIONS = {
    "bf16": "bf16",
    "int8": "int8",
    "int8-openvino": "int8 (OpenVINO)",
    "torch": "PyTorch without optimisation",
}


def network_name(spec: str, *, weights: str = "", precision: str = "", made_by: str = "") -> str:
    """Return the name of a network: ``ResNet-18, int8`` for ``resnet18`` in int8.

    Args:
        spec: of the backbone; for the path of a saved network, the name it was given.
        weights: spec of the weights; those other than ImageNet's are named.
        precision: of the forward pass; those other than float32 are named.
        made_by: label of the weights, which is the name if ``spec`` is a path where nothing is any
            more.
    """
    if is_path(spec):
        name = _saved_name(user_path(spec)) or readable(made_by)
        name = name or readable(user_path(spec).name) or "saved network"
    else:
        name = _name_of_spec(spec) + _weights_text(weights)
    form = _PRECISIONS.get(precision, "")
    if is_int8(spec):
        form = "OpenVINO" if precision == "int8-openvino" else ""
    return f"{name}, {form}" if form else name


def readable(text: str) -> str:
    """Return the label or the name of a saved network without digests, networks in common names.

    >>> readable("resnet18-pruned-1a2b3c4d, 50 % of MACs")
    'ResNet-18, pruned, 50 % of MACs'
    """
    text = _DERIVED.sub(lambda found: f", {_KINDS[found[1]]}", text)
    return _RESNET.sub(_common_name, _DIGEST.sub("", text)).strip(" ,")


def _common_name(found: re.Match[str]) -> str:
    return f"ResNet-{found[1]} ({found[2]})" if found[2] else f"ResNet-{found[1]}"


def run_title(provenance: Mapping[str, Any]) -> str:
    """Return a composed name of a run, such as ``linear tuned longtail:if=50 on ResNet-18``.

    Args:
        provenance: that of its report.
    """
    parts = [str(provenance["head"])]
    if provenance.get("tuned"):
        parts.append("tuned")
    parts += [str(provenance[name]) for name in ("balance", "subset") if provenance.get(name)]
    request = provenance["request"]
    if request.get("perturb"):
        parts.append(str(request["perturb"]))
    start: str = provenance.get("begun_with", {}).get("backbone", "")
    if start:  # a trained network: named by the network that its training started from
        return readable(f"{' '.join(parts)} on {start}")
    network = network_name(
        request["backbone"],
        weights=str(request.get("weights") or ""),
        precision=str(request.get("precision") or ""),
        made_by=str(provenance["weights"]),
    )
    return f"{readable(' '.join(parts))} on {network}"


def run_details(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return what may tell apart two runs with the same title, the most telling first."""
    request = provenance["request"]
    details = {"seed": provenance.get("seed"), "data": Path(str(request.get("data"))).name}
    for name in ("layer", "pool", "resize", "crop", "limit", "split"):
        details[name] = request.get(name)
    training = provenance.get("training") or {}
    augmented = request if request.get("augment") else training
    details["augment"] = augmented.get("augment") or "none"
    if details["augment"] != "none":  # otherwise the number of views means nothing
        details["views"] = augmented.get("views")
    details["train images"] = provenance.get("n_train")
    for name in ("mode", "unfreeze", "epochs", "lr"):
        details[name] = training.get(name)
    return {name: str(value) for name, value in details.items() if value is not None}


def distinct_names(names: Sequence[str], details: Sequence[Mapping[str, str]]) -> list[str]:
    """Return different names: equal ones get the details in which they differ, else a number.

    Args:
        names: of runs or networks.
        details: of each of them, in the order in which they are tried.
    """
    described = list(names)
    for name in dict.fromkeys(names):
        rows = [row for row, other in enumerate(names) if other == name]
        if len(rows) > 1:
            endings = _differences([details[row] for row in rows])
            for row, ending in zip(rows, endings, strict=True):
                described[row] = f"{name}{ending}"
    numbered = list(described)
    for row, name in enumerate(described):
        if described.count(name) > 1:
            numbered[row] = f"{name} ({described[: row + 1].count(name)})"
    return numbered


def _differences(details: Sequence[Mapping[str, str]]) -> list[str]:
    """Return for each row the first details that tell all of them apart, as far as any do."""
    endings = [""] * len(details)
    for key in dict.fromkeys(chain.from_iterable(details)):
        if len(set(endings)) == len(endings):
            break
        values = [row.get(key, "default") for row in details]
        if len(set(values)) > 1:
            endings = [f"{end}, {key} {value}" for end, value in zip(endings, values, strict=True)]
    return endings


def _name_of_spec(spec: str) -> str:
    try:
        parsed = Spec.parse(spec)
    except SpecError:
        return spec
    name = f"{parsed.argument} ({parsed.name})" if parsed.argument else readable(parsed.name)
    options = ", ".join(f"{key}={value}" for key, value in parsed.options.items())
    return f"{name} ({options})" if options else name


def _weights_text(weights: str) -> str:
    if weights in ("", "imagenet"):
        return ""
    if weights.startswith("random"):
        return ", untrained"
    return f" ({user_path(weights).name})"


def _saved_name(path: Path) -> str:
    """Return the name of a saved network; empty if nothing can be read there.

    Whoever loads the network reports what is wrong with it; a table is not the place for it.
    """
    folder = path.parent if path.name == NETWORK_FILE else path
    recorded = recorded_name(folder)
    if recorded:
        return recorded
    try:
        return _composed_name(path)
    except _UNREADABLE:
        return ""


def recorded_name(folder: Path) -> str:
    """Return the name that is recorded in the directory of a network or run, or an empty text."""
    try:
        for file in _FACTS_FILES:
            if (folder / file).is_file():
                recorded = read_json(folder / file).get(NAME_FIELD, "")
                return printable_line(recorded) if recorded else ""
        return read_card(folder).name if (folder / CARD_FILE).is_file() else ""
    except _UNREADABLE:
        return ""


def _composed_name(path: Path) -> str:
    """Return the name of a network by how it was made, or that of the network of a run."""
    if is_int8(str(path)):
        described = read_int8_description(str(path))
        if is_path(described.base):
            return readable(described.label)
        return f"{network_name(described.base)}, int8"
    if path.is_dir() and not (path / NETWORK_FILE).is_file():
        card = read_card(path)
        request = card.request
        return network_name(
            request.backbone,
            weights=request.weights,
            precision=request.precision,
            made_by=card.weights,
        )
    return readable(read_description(network_file(str(path))).label)
