"""The files of vectors that the cells of a matrix need: known before any is made, each made once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from featkit.ablation.grid import AxisValue
from featkit.backbones.devices import INT8
from featkit.embeddings import lookup
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import ExtractionPlan, content_keys, plan_extraction
from featkit.embeddings.request import Request
from featkit.errors import CacheError
from featkit.images.base import ImageSet, cache_last_row
from featkit.images.perturb import parse_perturbation
from featkit.storage import expand_variables

_IMAGES = ("data", "split", "limit", "seed", "augment", "views", "perturb", "part")
"""Fields of a request that say which images."""


@dataclass(frozen=True)
class Needed:
    """The files that a cell needs.

    Attributes:
        clean: all images as they are, or with augmented views.
        views: perturbed views of train, or None.
        test: the test images alone, perturbed, or None.
    """

    clean: Request
    views: Request | None
    test: Request | None

    @property
    def requests(self) -> tuple[Request, ...]:
        """Return those that there are."""
        return tuple(each for each in (self.clean, self.views, self.test) if each)


def needed(values: Mapping[str, AxisValue], fixed: Mapping[str, Any]) -> Needed:
    """Return the files that a cell of a grid needs; environment variables in its values are replaced.

    Raises:
        SpecError: if a perturbation is unknown.
    """
    names = ("data", "backbone", "weights", "layer", "precision", "seed")
    given = {name: expand_variables(value) for name, value in {**fixed, **{name: values[name] for name in names}}.items()}
    clean = Request(**{**given, "layer": given["layer"] or None})
    parts = []
    for axis, part in (("train_perturb", "train"), ("perturb", "test")):
        perturbation = parse_perturbation(str(values[axis]))
        side = replace(clean, augment=None, perturb=str(perturbation), part=part)
        parts.append(side if perturbation else None)
    return Needed(clean, *parts)


class Vectors:
    """Files of vectors by the requests for them; what cannot be had is remembered as the error that says so.

    Args:
        folder: that of the cache files.
        compute: how the work is done.
        note: told when this has to wait for another process.
    """

    def __init__(self, folder: Path, compute: Compute, note: Callable[[str], None] = lambda text: None) -> None:
        self._folder = folder
        self._compute = compute
        self._note = note
        self._load = cache(_load)
        self._images = cache(self._apply)
        self._jobs: dict[Request, ExtractionPlan | Exception] = {}

    def job(self, request: Request) -> ExtractionPlan | Exception:
        """Return the file that a request wants, or why it cannot be had; nothing is made."""
        if request not in self._jobs:
            try:
                self._jobs[request] = self._plan(request)
            except Exception as error:  # whatever it is, the other cells go on
                self._jobs[request] = error
        return self._jobs[request]

    def error(self, needs: Needed) -> Exception | None:
        """Return why one of the files cannot be had, None if all can."""
        found = [self.job(request) for request in needs.requests]
        return next((each for each in found if isinstance(each, Exception)), None)

    def known(self, request: Request) -> ExtractionPlan:
        """Return the file that a request wants.

        Raises:
            Exception: whatever says why it cannot be had.
        """
        found = self.job(request)
        if isinstance(found, Exception):
            raise found
        return found

    def path(self, request: Request) -> Path:
        """Return where the file of a request lies.

        Raises:
            CacheError: if it is not there.
        """
        path = lookup.find(self._folder, self.known(request).recipe)
        if path is None:
            raise CacheError(f"the vectors of {request.data} through {request.backbone} are gone from {self._folder}")
        return path

    def missing(self, requests: Iterable[Request]) -> list[ExtractionPlan]:
        """Return the files that are not there yet, of those that can be had."""
        return [job for job in self.files(requests) if lookup.find(self._folder, job.recipe) is None]

    def files(self, requests: Iterable[Request]) -> list[ExtractionPlan]:
        """Return the files that can be had, each once: two seeds of a split share one."""
        jobs = [job for request in requests if isinstance(job := self.job(request), ExtractionPlan)]
        return list({job.path: job for job in jobs}.values())

    def make(self, requests: Iterable[Request]) -> None:
        """Make the files that are not there yet: those of the same images from one decode, whole images first.

        An int8 network is calibrated on whole images; perturbed parts then run through the same one.
        """
        groups: dict[tuple[str, Request], list[Request]] = {}
        for request in dict.fromkeys(requests):
            if isinstance(self.job(request), ExtractionPlan):
                groups.setdefault((request.part or "", _plain(request)), []).append(request)
        for key in sorted(groups, key=lambda key: key[0]):
            self._make_group(groups[key])

    def _make_group(self, group: Sequence[Request]) -> None:
        """Make files from one decode; where that fails, each by itself, to see which of them is to blame."""
        try:
            images = [self.known(request).images for request in group]
            run_extractions(group, images, self._folder, self._compute, self._note)
        except Exception as error:  # whatever it is, the other cells go on
            if len(group) == 1:
                self._jobs[group[0]] = error
            else:
                for request in group:
                    self._make_group([request])
        else:
            for request in group:
                if request.precision in INT8:  # only now is the network known that it ran through
                    del self._jobs[request]

    def _plan(self, request: Request) -> ExtractionPlan:
        images, keys = self._images(Request(**{name: getattr(request, name) for name in _IMAGES}))
        return plan_extraction(request.for_device(self._compute.device), images, keys, self._folder)

    def _apply(self, request: Request) -> tuple[ImageSet, tuple[str, ...]]:
        images = request.apply(self._load(_plain(request)))
        return images, content_keys(images, self._compute)


def _plain(request: Request) -> Request:
    """Return the request for the images as they are, through no network in particular."""
    return Request(data=request.data, split=request.split, limit=request.limit, seed=request.seed)


def _load(request: Request) -> ImageSet:
    """Return images that are decoded once for all that is made of them, and hashed once."""
    images = request.load_images()
    return replace(images, load=cache_last_row(images.load), key=cache(images.key))
