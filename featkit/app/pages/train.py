"""The page Train: fit heads on images, in a process of its own."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path

import streamlit as st

from featkit.app.data import FileCheck, check_files, summarise_data
from featkit.app.jobs import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    STOPPED,
    WAITING,
    Job,
    list_jobs,
    start_job,
)
from featkit.app.models import network_lock
from featkit.app.progress import show_job_ended, show_job_progress
from featkit.app.runs import run_name
from featkit.app.settings import DIGITS, AppSettings, available_runs, named_data, resolve_data
from featkit.app.shared import errors_shown, load_data, page
from featkit.app.training import (
    RANDOM,
    WEIGHT_NAMES,
    backbone_names,
    default_weights,
    job_title,
    run_zip,
    training_request,
)
from featkit.app.views import error_text, plain, sandboxed_html
from featkit.errors import FeatkitError
from featkit.evaluation.metrics import TOP1
from featkit.images.base import ImageSet
from featkit.storage import read_text

_OTHER = "Another folder …"
_REPORT_HEIGHT = 900
_MAX_REPORT_BYTES = 2**27
_STATUS = {
    WAITING: "starting",
    RUNNING: "running",
    FINISHED: "finished",
    FAILED: "failed",
    STOPPED: "stopped",
    INTERRUPTED: "interrupted",
}


@page
def show(settings: AppSettings) -> None:
    """Show the page."""
    st.title("Train")
    st.caption("Fit classifiers on a folder or list of images, and evaluate them.")
    spec = _choose_data(settings)
    if spec is not None:
        with errors_shown():  # trainings are shown all the same
            _show_data(spec, load_data(spec))
            _choose_training(settings, spec)
    _show_jobs(settings)


def _choose_data(settings: AppSettings) -> str | None:
    """Return the spec of the chosen images; None if it cannot be used."""
    named = named_data(settings)
    choices = named if named == [DIGITS] else [*named, _OTHER]
    chosen = st.selectbox(
        "Images",
        choices,
        key="train_data",
        help="Folders and CSV files that the app was started with: `featkit app --data FOLDER`.",
    )
    if chosen == _OTHER:
        chosen = st.text_input("Folder, below one of the named folders", key="train_folder")
        if not chosen:
            return None
    resolved = None
    with errors_shown():
        resolved = resolve_data(settings, chosen)
    return resolved


def _show_data(spec: str, images: ImageSet) -> None:
    summary = summarise_data(images)
    st.markdown(
        f"**{summary.n:,}** images in **{len(summary.counts)}** classes; split: "
        f"{plain(summary.split)}."
    )
    for text in summary.warnings:
        st.warning(plain(text))
    with st.expander("Images of each class"):
        st.dataframe(list(summary.counts), hide_index=True, alt="Images of each class and split")
    key = f"checked:{spec}:{summary.n}"
    if st.button("Check the files", key="train_check", help="Reads every image once."):
        st.session_state[key] = _check(images)
    if key in st.session_state:
        _show_check(st.session_state[key])


def _check(images: ImageSet) -> FileCheck:
    """Read every image, with a progress bar that moves a hundred times."""
    bar = st.progress(0.0, "Reading images …")

    def show_progress(done: int, total: int) -> None:
        if done == total or done % (total // 100 + 1) == 0:
            bar.progress(done / total, f"Read {done:,} of {total:,} images")

    found = check_files(images, show_progress)
    bar.empty()
    return found


def _show_check(found: FileCheck) -> None:
    for name, reason in found.unreadable[:20]:
        st.error(plain(f"{name}: {reason}"))
    if len(found.unreadable) > 20:
        st.error(f"{len(found.unreadable) - 20} more images cannot be read.")
    if found.shared:
        pairs = "; ".join(f"{a} and {b}" for a, b in found.shared[:5])
        st.warning(plain(f"{len(found.shared)} images are in two splits, byte for byte: {pairs}"))
    if found.duplicates:
        st.warning(f"{found.duplicates} images are copies of another one in the same split.")
    if not (found.unreadable or found.shared or found.duplicates):
        st.success("Every image can be read, and no two are the same.")


def _choose_training(settings: AppSettings, spec: str) -> None:
    from featkit.heads import list_heads

    left, right = st.columns(2)
    backbone = left.selectbox(
        "Network",
        backbone_names(available_runs(settings)),
        key="train_backbone",
        format_func=lambda name: name if "/" not in name else run_name(name),
        help="resnet18 is the fastest, resnet50 usually more accurate.",
    )
    summaries = {head.name: head.summary for head in list_heads()}
    heads = right.multiselect(
        "Heads", list(summaries), default=["linear"], key="train_heads", help=_head_help(summaries)
    )
    weights = default_weights(backbone)
    with st.expander("More options"):
        weights = st.radio(
            "Weights",
            list(WEIGHT_NAMES),
            index=list(WEIGHT_NAMES).index(weights),
            format_func=lambda name: WEIGHT_NAMES[name],
            key=f"train_weights_{backbone}",
            horizontal=True,
        )
        tune = st.checkbox(
            "Tune hyperparameters on the validation set", key="train_tune", help="Slower."
        )
        reject = st.slider(
            "Answer “unknown” for this part of the validation images",
            0.0,
            0.2,
            0.0,
            0.01,
            key="train_reject",
            format="percent",
            help="The least confident ones; 0 answers always.",
        )
    if weights == RANDOM:
        text = "The network is untrained: results are for trying out only."
        if default_weights(backbone) == RANDOM:
            text += (
                f" ImageNet weights of {backbone} are not on this machine, and the app downloads "
                f"nothing: `featkit extract --backbone {shlex.quote(backbone)}` does."
            )
        st.warning(text)
    if st.button("Train", type="primary", key="train_start", icon=":material/play_arrow:"):
        with errors_shown():
            request = training_request(
                spec, backbone, heads, weights=weights, tune=tune, reject=reject
            )
            st.session_state["train_job"] = start_job(settings, request).id


def _head_help(summaries: dict[str, str]) -> str:
    return "\n".join(f"- **{name}**: {summary}" for name, summary in summaries.items())


def _show_jobs(settings: AppSettings) -> None:
    """Show the chosen training: the one that was started here, else the newest."""
    jobs = list_jobs(settings)
    if not jobs:
        return
    st.divider()
    ids = [job.id for job in jobs]
    titles = {job.id: _job_label(job) for job in jobs}
    started = st.session_state.pop("train_job", None)
    if started in ids:
        st.session_state["train_shown"] = started
    if st.session_state.get("train_shown") not in ids:
        st.session_state["train_shown"] = ids[0]
    chosen = st.selectbox(
        "Trainings", ids, key="train_shown", format_func=lambda job_id: titles[job_id]
    )
    job = jobs[ids.index(chosen)]
    if job.is_active:
        show_job_progress(job.folder)
    else:
        _show_ended(settings, job)


def _job_label(job: Job) -> str:
    time = datetime.fromtimestamp(job.created).strftime("%Y-%m-%d %H:%M")
    return f"{job_title(job)} – {_STATUS[job.state.status]}, {time}"


def _show_ended(settings: AppSettings, job: Job) -> None:
    show_job_ended(settings, job, key="train")
    runs = [Path(run) for run in job.state.runs if Path(run).is_dir()]
    if not runs:
        return
    if len(runs) > 1:
        _show_comparison(runs)
    run = runs[0]
    if len(runs) > 1:
        names = {path: run_name(str(path)) for path in runs}
        run = st.selectbox(
            "Run", runs, format_func=lambda path: names[path], key=f"train_run_{job.id}"
        )
    _show_run(run)


def _show_comparison(runs: list[Path]) -> None:
    from featkit import api

    with errors_shown():
        comparison = api.compare(runs)
        rows = []
        for name, report in comparison.runs:
            metric, value, (low, high) = report.headline
            rows.append(
                {
                    "run": name,
                    f"{metric} %": 100 * value,
                    "from": 100 * low,
                    "to": 100 * high,
                    "n": report.n,
                }
            )
        number = st.column_config.NumberColumn(format="%.1f")
        st.dataframe(
            rows,
            hide_index=True,
            column_config={f"{metric} %": number, "from": number, "to": number},
            alt=f"{metric} with 95 % confidence intervals",
        )
        words = "Top-1 accuracy" if metric == TOP1 else "Mean average precision"
        st.caption(f"{words} on the test images with its 95 % confidence interval.")
        for pair in comparison.pairs:
            st.markdown(f"- {plain(pair.sentence)}")


def _show_run(run: Path) -> None:
    """Show the report of a run and offer its files."""
    left, right, _ = st.columns([1, 1, 2])
    with errors_shown():
        left.download_button(
            "Run as ZIP",
            lambda: run_zip(run),
            f"{run.name}.zip",
            "application/zip",
            key=f"zip_{run.name}",
            on_click="ignore",
            icon=":material/folder_zip:",
            width="stretch",
        )
    exported = run / "model.onnx"
    if exported.exists():
        right.download_button(
            "ONNX file",
            exported.read_bytes,
            f"{run.name}.onnx",
            "application/octet-stream",
            key=f"onnx_{run.name}",
            on_click="ignore",
            icon=":material/download:",
            width="stretch",
        )
    elif right.button("Export to ONNX", key=f"export_{run.name}", width="stretch"):
        _export(run)
    report = run / "report.html"
    if report.exists():
        page_html = sandboxed_html(read_text(report, _MAX_REPORT_BYTES))
        st.iframe(page_html, height=_REPORT_HEIGHT, alt="Report of the run")


def _export(run: Path) -> None:
    from featkit import api

    try:
        with st.spinner("Exporting, and checking the file on test images …"), network_lock:
            api.export(run)
    except FeatkitError as error:
        st.error(plain(error_text(error)))
        return
    st.rerun()
