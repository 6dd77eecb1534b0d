"""The page Try: classify images with one or more models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from featkit.app.models import Model
from featkit.app.predictions import ClassifiedImage, SessionPredictions, in_order, predictions_csv
from featkit.app.runs import run_name
from featkit.app.settings import (
    MAX_UPLOADS,
    UPLOAD_MB,
    AppSettings,
    available_runs,
    named_data,
    resolve_data,
)
from featkit.app.shared import errors_shown, load_data, load_run_model, page
from featkit.app.uploads import GivenImage, data_set_images, uploaded_image
from featkit.app.views import answer_html, evidence_html, picture_html, plain

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

_PER_PAGE = 6
_TYPES = ("jpg", "jpeg", "png", "gif", "bmp", "ppm", "tif", "tiff", "webp", "jp2", "avif", "heic")
_SOURCES = ("Files", "Folder", "Camera", "Data set")


@page
def show(settings: AppSettings) -> None:
    """Show the page."""
    st.title("Try")
    st.caption("Classify images with one or more models. The images stay on this machine.")
    models = _choose_models(settings)
    if not models:
        return
    images = _choose_images(settings)
    if not images:
        return
    predictions: SessionPredictions = st.session_state.setdefault(
        "predictions", SessionPredictions()
    )
    classified = _classify(predictions, images, models)
    unreadable = [each for each in classified if each.decoded.error]
    for each in unreadable:
        st.error(plain(each.decoded.error))
    ordered = in_order(classified, list(models))
    if not ordered:
        return
    _summary(classified, ordered, models)
    first = 0
    if len(ordered) > _PER_PAGE:
        pages = -(-len(ordered) // _PER_PAGE)
        first = _PER_PAGE * (st.pagination(pages, key="try_page") - 1)
    shown = [(each, _card(each, models)) for each in ordered[first : first + _PER_PAGE]]
    # All predictions appear first: a heat map takes longer.
    for each, places in shown:
        _explain(predictions, each, models, places)


def _choose_models(settings: AppSettings) -> dict[str, Model]:
    runs = [str(path) for path in available_runs(settings)]
    if not runs:
        st.info(
            "There is no run yet. Train one on the page Train, or start the app with "
            "`featkit app RUN`."
        )
        return {}
    names = {text: run_name(text) for text in runs}
    chosen = st.multiselect(
        "Models",
        runs,
        default=runs[:1],
        format_func=lambda text: names[text],
        max_selections=4,
        key="try_models",
        help="Runs and exported files; up to four are compared side by side.",
    )
    if not chosen:
        st.info("Choose at least one model.")
    models = {}
    for text in chosen:
        with errors_shown():
            models[text] = load_run_model(text, settings)
    return models


def _choose_images(settings: AppSettings) -> list[GivenImage]:
    source = st.segmented_control(
        "Images from", _SOURCES, default="Files", required=True, key="try_source"
    )
    if source == "Data set":
        return _from_data_set(settings)
    if source == "Camera":
        photo = st.camera_input("Take a photo", key="try_camera")
        return [uploaded_image("photo.jpg", photo.getvalue())] if photo else []
    uploads = st.file_uploader(
        f"Images, at most {UPLOAD_MB} MB each and {MAX_UPLOADS} at a time",
        accept_multiple_files="directory" if source == "Folder" else True,
        type=None if source == "Files" else _TYPES,
        max_upload_size=UPLOAD_MB,
        key=f"try_upload_{source}",
        help="Images stay on this machine.",
    )
    if len(uploads) > MAX_UPLOADS:
        st.warning(f"Only the first {MAX_UPLOADS} of {len(uploads)} images are classified.")
    return [uploaded_image(each.name, each.getvalue()) for each in uploads[:MAX_UPLOADS]]


def _from_data_set(settings: AppSettings) -> list[GivenImage]:
    left, middle, right = st.columns([3, 2, 2], vertical_alignment="bottom")
    spec = left.selectbox("Data set", named_data(settings), key="try_data")
    count = middle.number_input("Images", 1, 50, 6, key="try_count")
    if right.button("Other images", key="try_other", width="stretch"):
        st.session_state["try_seed"] = st.session_state.get("try_seed", 0) + 1
    images = load_data(resolve_data(settings, spec))
    rows = images.rows("test") if len(images.rows("test")) else np.arange(len(images))
    generator = np.random.default_rng(st.session_state.get("try_seed", 0))
    chosen = generator.choice(rows, min(int(count), len(rows)), replace=False)
    st.caption("Random images of the test split.")
    return data_set_images(images, [int(row) for row in chosen])


def _classify(
    predictions: SessionPredictions, images: Sequence[GivenImage], models: Mapping[str, Model]
) -> list[ClassifiedImage]:
    """Classify the images; a bar is shown if there are several."""
    bar = st.progress(0.0, "Classifying …") if len(images) > 1 else None
    classified: list[ClassifiedImage] = []
    for each in predictions.classify(images, models):
        classified.append(each)
        if bar:
            bar.progress(
                len(classified) / len(images), f"Classified {len(classified)} of {len(images)}"
            )
    if bar:
        bar.empty()
    return classified


def _summary(
    classified: Sequence[ClassifiedImage],
    ordered: Sequence[ClassifiedImage],
    models: Mapping[str, Model],
) -> None:
    parts = [f"{len(ordered)} image{'s' if len(ordered) > 1 else ''}"]
    if len(models) > 1:
        disagreeing = sum(each.disagrees(models) for each in ordered)
        parts.append(f"the models disagree on {disagreeing}, shown first")
    left, right = st.columns([3, 1], vertical_alignment="center")
    left.markdown("; ".join(parts) + ".")
    titles = {key: run_name(key) for key in models}
    right.download_button(
        "Predictions as CSV",
        predictions_csv(classified, titles),
        "predictions.csv",
        "text/csv",
        key="try_csv",
        on_click="ignore",
        width="stretch",
    )


def _card(classified: ClassifiedImage, models: Mapping[str, Model]) -> dict[str, DeltaGenerator]:
    """Show one image with the prediction of each model; return the places for the evidence."""
    places = {}
    with st.container(border=True):
        columns = st.columns([1, *[1.3] * len(models)])
        thumbnail = classified.decoded.thumbnail
        assert thumbnail is not None
        width, height = classified.decoded.size
        columns[0].html(picture_html(thumbnail, classified.image.name))
        columns[0].caption(f"{plain(classified.image.name)}, {width} × {height}")
        for column, key in zip(columns[1:], models, strict=True):
            if key not in classified.answers:
                continue
            with column:
                st.html(answer_html(run_name(key), classified.answers[key], classified.image.true))
                places[key] = st.empty()
    return places


def _explain(
    predictions: SessionPredictions,
    classified: ClassifiedImage,
    models: Mapping[str, Model],
    places: Mapping[str, DeltaGenerator],
) -> None:
    """Show what the prediction of each model rests on."""
    for key, place in places.items():
        with errors_shown():
            predictions.explain(classified, {key: models[key]})
        if key in classified.evidence:
            label = classified.answers[key].prediction.most_probable
            place.html(evidence_html(classified.evidence[key], label))
