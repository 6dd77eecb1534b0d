"""The page Clean: decide about suspect labels and duplicates; what to label next."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from featkit.app.cleaning import (
    KIND_NAMES,
    DecisionBook,
    ReviewItem,
    compare_on_same_images,
    review_items,
)
from featkit.app.jobs import FINISHED, list_jobs, read_job, start_job
from featkit.app.models import network_lock
from featkit.app.progress import show_job_ended, show_job_progress
from featkit.app.runs import run_name
from featkit.app.settings import (
    DIGITS,
    AppSettings,
    available_runs,
    is_path_spec,
    named_data,
    resolve_data,
    resolve_run,
)
from featkit.app.shared import errors_shown, load_data, page
from featkit.app.training import backbone_names, default_weights, network_resize, training_request
from featkit.app.views import picture_html, plain, tiles_html
from featkit.images.base import Pixels
from featkit.studies.audit import AuditResult
from featkit.studies.clean import Decision
from featkit.studies.inspect import ImageReader

_GALLERY = 24
_PICTURE_SIDE = 320
"""Longest side of the picture under review, in pixels."""
_REVIEW, _NEXT = "Review labels and duplicates", "What to label next"


@page
def show(settings: AppSettings) -> None:
    """Show the page."""
    st.title("Clean")
    st.caption("Review what is probably wrong in a data set. Image files are never changed.")
    part = st.segmented_control(
        "Task", [_REVIEW, _NEXT], default=_REVIEW, required=True, key="clean_task"
    )
    if part == _REVIEW:
        _review(settings)
    else:
        _label_next(settings)


def _review(settings: AppSettings) -> None:
    left, middle, right = st.columns([2, 2, 1], vertical_alignment="bottom")
    spec = left.selectbox("Images", named_data(settings), key="clean_data")
    networks = backbone_names(available_runs(settings))
    backbone = middle.selectbox(
        "Network", networks, key="clean_backbone", format_func=_network_name
    )
    choice = (resolve_data(settings, spec), backbone)
    if right.button("Find problems", type="primary", key="clean_find", width="stretch"):
        st.session_state["clean_audited"] = choice
    if st.session_state.get("clean_audited") != choice:
        st.caption(
            "Finds labels that are probably wrong, identical images and near duplicates. Features "
            "that are not cached are extracted first, which takes minutes for thousands of images."
        )
        return
    result = _audit(settings, *choice)
    for note in result.notes:
        st.warning(plain(note))
    images = load_data(choice[0])
    _decide(settings, choice, result, ImageReader(images))


def _network_name(name: str) -> str:
    return name if "/" not in name else run_name(name)


def _audit(settings: AppSettings, spec: str, backbone: str) -> AuditResult:
    stamp: object = None
    if is_path_spec(spec):
        stamp = Path(spec).stat().st_mtime_ns
    return _audit_once(settings, spec, backbone, stamp)


@st.cache_resource(max_entries=4, show_spinner="Looking for problems …", show_time=True)
def _audit_once(settings: AppSettings, spec: str, backbone: str, stamp: object) -> AuditResult:
    """Audit a data set; once for all sessions, and again if its folder or list changes."""
    from featkit import api

    with network_lock:
        return api.audit(
            spec,
            backbone=backbone,
            weights=default_weights(backbone),
            resize=network_resize(spec, backbone),
            cache=settings.cache,
            device=settings.device,
            on_error="skip",
            quality=False,
        )


def _decide(
    settings: AppSettings, choice: tuple[str, str], result: AuditResult, read: ImageReader
) -> None:
    spec = choice[0]
    items = review_items(result)
    book = DecisionBook(settings.out, spec)
    decided = book.read()
    counts = {kind: len(of_kind) for kind, of_kind in items.items()}
    kind = st.segmented_control(
        "Findings",
        list(KIND_NAMES),
        default="labels",
        required=True,
        format_func=lambda each: f"{KIND_NAMES[each]} ({counts[each]})",
        key="clean_kind",
    )
    _small_classes(result)
    if not items[kind]:
        st.success("Nothing was found.")
    else:
        _show_item(book, decided, items[kind], result, read)
        _gallery(book, decided, items[kind], read)
    if spec == DIGITS:
        st.info("The digits are not files, so that no list of them can be written.")
    elif decided:
        _write(settings, choice, result, book, decided)


def _small_classes(result: AuditResult) -> None:
    names = [result.embeddings.classes[label] for label in result.small]
    if names:
        shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        st.caption(plain(f"{len(names)} small or untested classes: {shown}"))


def _show_item(
    book: DecisionBook,
    decided: dict[str, Decision],
    items: list[ReviewItem],
    result: AuditResult,
    read: ImageReader,
) -> None:
    """Show one suggestion with its buttons; each has a key."""
    place = min(st.session_state.get("clean_place", 0), len(items) - 1)
    item = items[place]
    with st.container(border=True):
        done = sum(each.path in decided for each in items)
        st.markdown(f"**{place + 1}** of {len(items)}, {done} decided")
        left, right = st.columns([1, 1])
        with left:
            _picture(read, item.path, f"{item.path}, {item.split}: {item.label}")
        with right:
            if item.other:
                _picture(read, item.other, f"It resembles {item.other}, which is kept")
            else:
                st.markdown(
                    f"Label **{plain(item.label)}**; suggested **{plain(item.suggestion.label)}**"
                )
            st.caption(plain(item.note))
            present = decided.get(item.path)
            if present:
                st.markdown(f"Decision: **{plain(_decision_text(present))}**")
            classes = result.embeddings.classes
            suggested = item.suggestion.label or item.label
            target = st.selectbox(
                "New label",
                classes,
                index=classes.index(suggested),
                key=f"clean_label_{item.path}",
            )
        _buttons(book, decided, items, place, target)


def _picture(read: ImageReader, name: str, caption: str) -> None:
    pixels = read.thumbnail(name, _PICTURE_SIDE)
    if pixels is None:
        st.warning(plain(f"{name} cannot be read"))
    else:
        st.html(picture_html(pixels, name))
    st.caption(plain(caption))


def _decision_text(decision: Decision) -> str:
    return f"relabel to {decision.label}" if decision.action == "relabel" else decision.action


def _buttons(
    book: DecisionBook,
    decided: dict[str, Decision],
    items: list[ReviewItem],
    place: int,
    target: str,
) -> None:
    """Show the buttons of a suggestion; R and C are keys of Streamlit itself."""
    item = items[place]

    def decide(action: str) -> None:
        label = target if action == "relabel" else ""
        with errors_shown():
            book.decide([Decision(item.path, action, label)])
            st.session_state["clean_place"] = _next_open(items, decided, place)

    def go(step: int) -> None:
        st.session_state["clean_place"] = (place + step) % len(items)

    actions = {"keep": "k", "relabel": "l", "drop": "d"}
    columns = st.columns(5)
    for column, (action, shortcut) in zip(columns, actions.items(), strict=False):
        column.button(
            action.capitalize(),
            key=f"clean_{action}",
            shortcut=shortcut,
            on_click=decide,
            args=(action,),
            width="stretch",
        )
    moves = {"previous": ("Left", -1), "next": ("Right", 1)}
    for column, (name, (shortcut, step)) in zip(columns[3:], moves.items(), strict=True):
        column.button(
            name.capitalize(),
            key=f"clean_{name}",
            shortcut=shortcut,
            on_click=go,
            args=(step,),
            width="stretch",
        )


def _next_open(items: list[ReviewItem], decided: dict[str, Decision], place: int) -> int:
    """Return the next place without a decision; the next one if there is none."""
    for step in range(1, len(items)):
        candidate = (place + step) % len(items)
        if items[candidate].path not in decided:
            return candidate
    return (place + 1) % len(items)


def _gallery(
    book: DecisionBook,
    decided: dict[str, Decision],
    items: list[ReviewItem],
    read: ImageReader,
) -> None:
    with st.expander(f"Gallery of all {len(items)}", expanded=False):
        pages = -(-len(items) // _GALLERY)
        first = _GALLERY * (st.pagination(pages, key="clean_page") - 1) if pages > 1 else 0
        tiles = []
        for item in items[first : first + _GALLERY]:
            suggestion = _decision_text(decided.get(item.path, item.suggestion))
            state = "decided" if item.path in decided else "suggested"
            tiles.append((read.thumbnail(item.path, 112), f"{item.label}; {state}: {suggestion}"))
        st.html(tiles_html(tiles))
        left, right, _ = st.columns([1, 1, 2])
        open_items = [each.suggestion for each in items if each.path not in decided]
        if left.button(
            f"Accept the {len(open_items)} open suggestions",
            key="clean_accept",
            disabled=not open_items,
        ):
            book.decide(open_items)
            st.rerun()
        if right.button("Forget these decisions", key="clean_forget", disabled=not decided):
            book.forget([item.path for item in items])
            st.rerun()


def _write(
    settings: AppSettings,
    choice: tuple[str, str],
    result: AuditResult,
    book: DecisionBook,
    decided: dict[str, Decision],
) -> None:
    from featkit.studies.clean import clean

    st.subheader("Cleaned data set")
    spec, backbone = choice
    cleaned = clean(result, list(decided.values()))
    counts = cleaned.counts
    st.markdown(
        f"{counts['listed']:,} images are listed, {counts['relabelled']} relabelled and "
        f"{counts['dropped']} dropped. The image files stay as they are."
    )
    for note in cleaned.notes:
        st.warning(plain(note))
    left, middle, _ = st.columns([1, 1, 2])
    if left.button("Write the list", key="clean_write", type="primary", width="stretch"):
        cleaned.write(book.list_file)
        st.success(plain(f"Written: {book.list_file}. Use it with --data."))
    if middle.button(
        "Retrain and compare", key="clean_retrain", width="stretch", help="With a linear head."
    ):
        cleaned.write(book.list_file)
        request = training_request(
            str(book.list_file),
            backbone,
            ["linear"],
            weights=default_weights(backbone),
            baseline=spec,
        )
        start_job(settings, request)
    _retraining(settings, book)


def _retraining(settings: AppSettings, book: DecisionBook) -> None:
    """Show the newest training on the list, and its comparison with the original data."""
    jobs = [job for job in list_jobs(settings) if job.request.data == str(book.list_file)]
    if not jobs:
        return
    job = read_job(jobs[0].folder)
    if job.is_active:
        show_job_progress(job.folder)
        return
    if job.state.status != FINISHED:
        show_job_ended(settings, job, key="clean")
        return
    before, after = (Path(run) for run in job.state.runs)
    with errors_shown():
        found = compare_on_same_images(before, after)
        st.markdown(plain(found.sentence) + f" n = {found.n} test images that both have.")


# What to label next -------------------------------------------------------------------------------


def _label_next(settings: AppSettings) -> None:
    runs = [str(path) for path in available_runs(settings) if path.suffix != ".onnx"]
    folders = [spec for spec in settings.data if is_path_spec(spec) and Path(spec).is_dir()]
    if not runs or not folders:
        st.info(
            "This needs a run and a folder of unlabelled images: train on the page Train, and "
            "start the app with `featkit app --data FOLDER`."
        )
        return
    names = {text: run_name(text) for text in runs}
    first, second, third, fourth = st.columns([2, 2, 1, 1], vertical_alignment="bottom")
    run = first.selectbox("Run", runs, format_func=lambda text: names[text], key="next_run")
    folder = second.selectbox("Unlabelled images", folders, key="next_folder")
    count = third.number_input("Images", 1, 1000, 100, key="next_count")
    choice = (run, folder, int(count))
    if fourth.button("Suggest", type="primary", key="next_start", width="stretch"):
        st.session_state["next_suggested"] = choice
    if st.session_state.get("next_suggested") != choice:
        st.caption("Uncertain images that differ from each other: a label for them helps most.")
        return
    from featkit import api

    with st.spinner("Looking for useful images …", show_time=True), network_lock:
        found = api.suggest(
            resolve_run(settings, run),
            resolve_data(settings, folder),
            n=int(count),
            cache=settings.cache,
            device=settings.device,
            on_error="skip",
        )
    for note in found.notes:
        st.warning(plain(note))
    st.download_button(
        "Suggestions as CSV", found.to_csv(), "suggestions.csv", "text/csv", on_click="ignore"
    )
    tiles = []
    for image in found.images[:_GALLERY]:
        caption = f"{image.rank}. {image.predicted} {100 * image.confidence:.0f} % or {image.top2}"
        tiles.append((_file_thumbnail(image.path), caption))
    st.html(tiles_html(tiles))
    if len(found.images) > _GALLERY:
        st.caption(f"The first {_GALLERY} of {len(found.images)} are shown.")


def _file_thumbnail(path: str) -> Pixels | None:
    from featkit.images.decode import decode_file
    from featkit.images.thumbnails import shrink

    pixels = None
    with errors_shown():
        pixels = shrink(decode_file(path), 112)
    return pixels
