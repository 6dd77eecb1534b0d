"""The page Map: features in two dimensions, with the images under the pointer."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import streamlit as st

from featkit.app.maps import (
    COLOURS,
    FeatureMap,
    MapChoice,
    cached_features,
    chart_options,
    map_columns,
    map_of_file,
    map_of_run,
    selected_rows,
    selection_csv,
)
from featkit.app.models import content_stamp
from featkit.app.runs import run_name
from featkit.app.settings import AppSettings, available_runs, resolve_run
from featkit.app.shared import page
from featkit.app.views import plain, uri_tiles_html
from featkit.errors import CacheError
from featkit.evaluation.projection import METHOD_NAMES

_HEIGHT = 560
_GALLERY = 60
_SIZES = (500, 1000, 2000, 3000)
_MODULES = {"opentsne": "openTSNE", "umap": "umap"}


@page
def show(settings: AppSettings) -> None:
    """Show the page."""
    st.title("Map")
    st.caption("See where images lie in the space of features, and select some.")
    sources = _sources(settings)
    if not sources:
        st.info("There are no features yet: train on the page Train, or run `featkit extract`.")
        return
    first, second, third, fourth = st.columns([3, 1, 1, 1])
    source = first.selectbox(
        "Features", list(sources), format_func=lambda text: sources[text], key="map_source"
    )
    split = second.selectbox("Split", ["test", "train", "val", "all"], key="map_split")
    methods = [name for name in METHOD_NAMES if _is_available(name)]
    method = third.selectbox(
        "Method",
        methods,
        index=methods.index("tsne"),
        format_func=lambda name: METHOD_NAMES[name],
        key="map_method",
    )
    most = fourth.selectbox("Images at most", _SIZES, index=1, key="map_most")
    choice = MapChoice(method, most, split)
    found = _load(settings, source, choice)
    colours = COLOURS if found.has_predictions else ("label", "split")
    colour = st.segmented_control(
        "Colour", colours, default="label", required=True, key=f"map_colour_{len(colours)}"
    )
    _show_map(found, colour, f"{source}:{choice}")


def _sources(settings: AppSettings) -> dict[str, str]:
    """Return the runs and cache files that can be shown, with their names."""
    sources = {}
    for path in available_runs(settings):
        if path.suffix != ".onnx":
            sources[str(path)] = f"Run: {run_name(str(path))}"
    for file, name in cached_features(settings.cache).items():
        sources[file] = f"Cache: {name}"
    return sources


def _is_available(method: str) -> bool:
    # Not imported before it is used: umap takes seconds.
    return method not in _MODULES or find_spec(_MODULES[method]) is not None


def _load(settings: AppSettings, source: str, choice: MapChoice) -> FeatureMap:
    path = Path(source)
    if path.suffix == ".h5":
        if source not in cached_features(settings.cache):
            raise CacheError(f"{source} is not in the cache of this app any more: choose another")
        stamp: object = (path.stat().st_size, path.stat().st_mtime_ns)
    else:
        path = resolve_run(settings, source)
        stamp = content_stamp(path)
    return _project(path, settings.cache, stamp, choice)


@st.cache_resource(max_entries=8, show_spinner="Projecting the features …")
def _project(path: Path, cache: Path, stamp: object, choice: MapChoice) -> FeatureMap:
    """Return a map; it is computed once for all sessions, and again if the files change."""
    return map_of_file(path, choice) if path.suffix == ".h5" else map_of_run(path, cache, choice)


def _show_map(found: FeatureMap, colour: str, key: str) -> None:
    columns = map_columns(found, colour)
    options = chart_options(columns)
    options["dataset"] = {"source": pd.DataFrame(columns)}
    event = st.echarts_chart(
        options,
        height=_HEIGHT,
        key=f"map_chart:{key}:{colour}",
        on_select="rerun",
        alt=f"Map of {len(found.names)} images of {found.data} by {colour}",
    )
    projection = found.projection
    st.caption(
        plain(
            f"{len(found.names):,} images, {METHOD_NAMES[projection.method]}, seed "
            f"{projection.seed}; trustworthiness {projection.trustworthiness:.2f} over "
            f"{projection.neighbours} neighbours. Draw a box or a lasso with the buttons above the "
            "map, or choose groups below; a double click clears the selection."
        )
    )
    groups = columns["group"]
    chosen = st.multiselect("Select groups", sorted(set(groups)), key=f"map_groups:{key}:{colour}")
    rows = selected_rows(event["selection"]["selected"], len(groups))
    if chosen:
        rows = sorted({*rows, *(row for row, group in enumerate(groups) if group in chosen)})
    if rows:
        _show_selection(found, rows, columns["caption"])


def _show_selection(found: FeatureMap, rows: list[int], captions: list[str]) -> None:
    left, right = st.columns([3, 1], vertical_alignment="center")
    more = f"; the first {_GALLERY} are shown" if len(rows) > _GALLERY else ""
    left.markdown(f"**{len(rows)}** images selected{more}.")
    right.download_button(
        "Selection as CSV",
        selection_csv(found, rows),
        "selection.csv",
        "text/csv",
        key="map_csv",
        on_click="ignore",
        width="stretch",
    )
    shown = rows[:_GALLERY]
    st.html(uri_tiles_html([(found.pictures[row], captions[row]) for row in shown]))
