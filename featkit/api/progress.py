"""Progress bars and log lines of long computations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from featkit.api.options import log

if TYPE_CHECKING:
    from featkit.ablation.run import Progress
    from featkit.studies.train import Clock
    from featkit.training.distributed import ProcessGroup
    from featkit.training.history import EpochRecord
    from featkit.training.loop import TrainingCallbacks


def first_process_log(group: ProcessGroup) -> Callable[[str], None]:
    """Return what logs a message in the first process and drops it in the others."""
    return log.info if not group.rank else lambda message: None


_EPOCH_BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"


@contextmanager
def candidate_bar(visible: bool) -> Iterator[Callable[[Any], None]]:
    """Show a bar on stderr that counts the candidates of a hyperparameter search."""
    from tqdm import tqdm

    with tqdm(unit="candidate", disable=not visible) as bar:
        yield lambda candidate: bar.update() and None


@contextmanager
def search_bar(clock: Clock, visible: bool) -> Iterator[Callable[[str], None]]:
    """Show a bar on stderr of the time that a search has used of its budget."""
    from tqdm import tqdm

    total = max(1.0, clock.seconds - clock.reserve)
    form = "{desc}: {bar} {postfix}"
    with tqdm(total=total, desc="choosing a head", disable=not visible, bar_format=form) as bar:
        tried = 0

        def show(name: str) -> None:
            nonlocal tried
            tried += 1
            bar.set_description_str(name, refresh=False)
            bar.set_postfix_str(f"{tried} candidates, {max(0.0, clock.left):.0f} s left")
            bar.update(min(clock.elapsed, total) - bar.n)

        yield show


@contextmanager
def cell_bar(visible: bool) -> Iterator[Callable[[Progress], None]]:
    """Show a bar on stderr that counts the cells of a grid."""
    from tqdm import tqdm

    with tqdm(unit="cell", disable=not visible) as bar:

        def show(progress: Progress) -> None:
            if bar.total is None:  # cells that were finished before do not count for the time left
                bar.reset(progress.total)
                bar.initial = bar.n = progress.done
            bar.set_postfix(running=progress.running, failed=progress.failed, refresh=False)
            bar.update(progress.done - bar.n)
            bar.refresh()

        yield show


@contextmanager
def training_callbacks(
    epochs: int, visible: bool, group: ProcessGroup | None
) -> Iterator[TrainingCallbacks]:
    """Log a line per epoch, and show a bar of epochs with the loss of the step on stderr."""
    from tqdm import tqdm

    from featkit.training.loop import TrainingCallbacks

    first = group is None or not group.rank
    note = first_process_log(group) if group else log.info
    with tqdm(
        total=epochs, unit="epoch", disable=not (visible and first), bar_format=_EPOCH_BAR
    ) as bar:

        def on_step(epoch: int, step: int, loss: float, top1: float) -> None:
            accuracy = f"top-1 {100 * top1:.1f}%"
            bar.set_postfix_str(f"epoch {epoch + 1}, step {step}: loss {loss:z.3f}, {accuracy}")

        def on_epoch(record: EpochRecord) -> None:
            bar.update(record.number + 1 - bar.n)
            note(epoch_line(record, epochs))

        yield TrainingCallbacks(on_step, on_epoch, note)


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """Return an epoch of a training in one line."""
    parts = []
    for name, score in (("train", record.train), ("val", record.val)):
        if score:
            text = f"{name}: loss {score.loss:z.3f}, top-1 {100 * score.top1:.1f}%"
            if score.top5 is not None:
                text += f", top-5 {100 * score.top5:.1f}%"
            parts.append(text)
    return f"epoch {record.number + 1}/{epochs}, {record.seconds:.0f} s; {'; '.join(parts)}"


def batch_bar(name: str, visible: bool) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """Return a function that shows a bar on stderr while a sequence is worked through."""
    from tqdm import tqdm

    return lambda steps: tqdm(steps, desc=name, disable=not visible, leave=False)


@contextmanager
def iteration_bar(name: str, visible: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar on stderr of the steps of a computation, from the first one on."""
    from tqdm import tqdm

    if not visible:
        yield None
        return
    bar: Any = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or tqdm(desc=name, total=total, unit_scale=total >= 10**6, leave=False)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar:
            bar.close()
