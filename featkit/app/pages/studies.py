"""The page Studies: results of grids, long-tail and robustness studies."""

from __future__ import annotations

import streamlit as st

from featkit.app.settings import AppSettings
from featkit.app.shared import errors_shown, page
from featkit.app.studies import (
    Study,
    display_rows,
    find_studies,
    heat_map_png,
    pareto_png,
    read_figure,
    read_table,
)
from featkit.app.views import plain, sandboxed_html
from featkit.storage import read_text

_REPORT_HEIGHT = 900
_MAX_REPORT_BYTES = 2**27
_TABLE, _FIGURES, _REPORT = "Tables", "Figures", "Report"


@page
def show(settings: AppSettings) -> None:
    """Show the page."""
    st.title("Studies")
    st.caption("Read the results of grids, long-tail and robustness studies.")
    studies = find_studies(settings.studies)
    if not studies:
        st.info(
            "There are no results yet: run `featkit ablate`, `longtail` or `robustness`, and start "
            "the app with `featkit app --studies DIR`."
        )
        return
    places = list(range(len(studies)))
    chosen = studies[
        st.selectbox("Study", places, format_func=lambda n: studies[n].name, key="studies_study")
    ]
    parts = [_TABLE] if chosen.tables else []
    parts += [_FIGURES] if chosen.figures or chosen.tables else []
    parts += [_REPORT] if chosen.report else []
    part = st.segmented_control("Show", parts, default=parts[0], required=True, key="studies_part")
    if part == _TABLE:
        _tables(chosen)
    elif part == _FIGURES:
        _figures(chosen)
    elif part == _REPORT and chosen.report:
        text = read_text(chosen.report, _MAX_REPORT_BYTES)
        st.iframe(sandboxed_html(text), height=_REPORT_HEIGHT, alt="Report of the study")


def _tables(study: Study) -> None:
    for path in study.tables:
        with errors_shown():
            table = read_table(path)
            rows, in_percent = display_rows(table)
            st.subheader(plain(path.name))
            st.dataframe(
                rows,
                hide_index=True,
                column_config={
                    name: st.column_config.NumberColumn(
                        f"{name.replace('_', ' ')} %", format="%.1f"
                    )
                    for name in in_percent
                },
                key=f"studies_table_{path}",
                alt=f"Results in {path.name}",
            )
            constant = {name: value for name, value in table.constant.items() if value is not None}
            same = "; ".join(f"{name} {_short(value)}" for name, value in constant.items())
            st.caption(plain(f"{len(rows)} rows. The same in all of them: {same or 'nothing'}."))


def _short(value: object) -> str:
    """Return a value as text, whole numbers without a point."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _figures(study: Study) -> None:
    shown = 0
    for path in study.figures:
        with errors_shown():
            st.image(read_figure(path), alt=f"{path.stem} of {study.name}")
            shown += 1
    names = {path.stem for path in study.figures}
    for path in study.tables:
        with errors_shown():
            table = read_table(path)
            title = f"{study.name}, {path.name}"
            drawn = None if path.stem in names else pareto_png(path)
            if drawn is None and "heatmap" not in names:
                drawn = heat_map_png(table, title)
            if drawn is not None:
                st.image(drawn, alt=f"Figure of {path.name}")
                shown += 1
    if not shown:
        st.info("These results have no figure; the report and the tables show them.")
