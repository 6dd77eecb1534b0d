"""Run mutated command lines and grids; report every exception that is not an error message.

    python experiments/benchmarks/fuzz.py [--cases 500] [--seed 0] [--only N]

Each case is a valid command, or a command with a valid TOML file, in which one to three things are
changed: an argument is removed, repeated, moved, replaced by a hostile value or altered in a few
characters, an option of the command is added, or a line of the file is changed. A case fails if the
command raises anything but ``SystemExit``, exits with another code than 0, 1 or 2, prints a
traceback or an error of several lines, or if a cell of a grid fails by an exception that is not a
``FeatkitError``. Commands run in this process, in a new folder of tiny images for each case, with
the same cache of features. Exit code 1 if a case fails; ``--only N`` repeats one.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import click
import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from featkit.cli import main
from featkit.cli.main import COMMANDS

FAST = "--weights random --resize 32 --device cpu"

COMMAND_LINES = (
    f"extract --data photos --backbone resnet18 {FAST}",
    f"extract --data photos --layer layer2 --store float16,gzip --batch-size 4 {FAST}",
    f"extract --data labels.csv --augment basic --views 2 --on-error skip --explain {FAST}",
    f"extract --data digits --split 70/15/15 --limit train=30,test=20 --pool max {FAST}",
    "cache ls",
    "cache ls --json --cache cache",
    "cache show cache/FILE",
    "cache verify cache/FILE",
    "cache export cache/FILE vectors.csv",
    "cache export cache/FILE vectors.npz",
    "cache import vectors0.csv --cache new",
    "cache gc",
    "cache rm cache/FILE",
    f"fit --data photos --head prototypical {FAST}",
    f"fit --data photos --head knn:k=1,metric=cosine --head svm:C=9 --seed 3 --json {FAST}",
    f"fit --data photos --head linear --tune --reject 0.1 --split 60/20/20 {FAST}",
    f"fit --data photos --head linear --balance logit-adjust:tau=1 --subset kshot:k=2 {FAST}",
    f"fit --data photos --head mlp --perturb fog:level=mild --strict --seeds 2 {FAST}",
    "fit --cache cache/FILE --head prototypical --out results",
    "predict RUN photos/red/0.png photos/blue",
    "predict RUN photos --json --on-error skip",
    "predict RUN photos/red/0.png --csv",
    "compare RUN OTHER",
    "compare RUN OTHER --json",
    f"ablate --data photos --head prototypical --head knn:k=1 --seed 0 --seed 1 --jobs 1 {FAST}",
    f"ablate --data photos --head linear --balance none --balance reweight --dry-run {FAST}",
    f"longtail --data photos --if 2 --balance none --head prototypical --jobs 1 {FAST}",
    f"robustness --data photos --family fog --level mild --head prototypical --jobs 1 {FAST}",
    "ablate grid.toml --jobs 1",
    "ablate grid.toml --dry-run",
    f"fewshot --data photos --way 2 --shot 1,2 --query 2 --episodes 5 --curve 1,2 --draws 2 {FAST}",
    f"audit --data photos --few 3 --top 2 --strict {FAST}",
    "finetune study.toml --device cpu",
    f"finetune --data photos --mode shallow --epochs 1 --batch-size 8 {FAST}",
    "export RUN --format onnx --check 4",
    f"prune resnet18 --macs 0.5 {FAST}",
    f"quantize resnet18 --data photos --images 4 --method minmax {FAST}",
    "profile resnet18 --weights random --repeats 1 --warm-up 0",
    "models",
    "models --layers resnet18",
    "heads",
    "completion bash",
)
"""Valid commands; FILE, RUN and OTHER are replaced by a cache file and two runs."""

FILES = {
    "grid.toml": """
name = "colours"
[axes]
data = ["photos"]
backbone = ["resnet18"]
weights = ["random"]
subset = ["all", "kshot:k=2"]
balance = ["none", "logit_adjust"]
perturb = ["none", "fog:level=mild"]
head = ["prototypical", "knn:k=1"]
tune = [false]
seed = [0]
[fixed]
resize = "32"
limit = "train=9"
views = 2
[[skip]]
when = {subset = "all", balance = ["logit_adjust"]}
why = "balanced classes"
""",
    "study.toml": """
name = "trainings"
[fixed]
data = "photos"
weights = "random"
resize = "32"
epochs = 1
batch_size = 8
[[run]]
name = "a"
mode = "shallow"
[[run]]
name = "b"
mode = "deep"
unfreeze = "layer4.1"
lr = 0.01
""",
    "labels.csv": "path,label,split\n"
    + "".join(
        f"photos/{name}/{number}.png,{name},{'test' if number > 3 else 'train'}\n"
        for name in ("blue", "green", "red")
        for number in range(6)
    ),
    "vectors0.csv": "id,label,split,x0,x1\n"
    + "".join(
        f"{row}.png,{'ab'[row % 2]},{'test' if row > 5 else 'train'},{row},{-row}\n"
        for row in range(8)
    ),
}

HOSTILE = (
    *("", " ", "-", "--", "=", ":", ",", "/", ".", "..", "~", "*", "%s", "{}", "\\", "'", '"'),
    *("0", "-1", "1", "2", "3", "0.5", "-0.5", "1e400", "1e-400", "nan", "inf", "-inf", "0x10"),
    *("1_000", "٣", "½", "2147483648", "9223372036854775808", "1" + "0" * 40, "1.5", "+3"),
    *("none", "true", "null", "None", "all", "auto", "random", "imagenet", "digits", "photos"),
    *(
        "naïve",
        "猫",
        "\u202egnp",
        "\x1b[31m",
        "a\nb",
        "a\tb",
        "\x7f",
        "\udcff",
        "é" * 300,
        "x" * 5000,
    ),
    *(
        "photos/red/0.png",
        "labels.csv",
        "grid.toml",
        "empty",
        "empty.csv",
        "nowhere/x",
        "/dev/null",
    ),
    *("RUN", "OTHER", "cache", "cache/FILE", "RUN/card.json", "RUN/head.skops", "RUN/results.json"),
    *("svm", "svm:", "svm:C", "svm:C=", "svm:C=-1", "svm:C=nan", "svm:=1", "svm:C=1,C=2", ":svm"),
    *("knn:k=0", "knn:k=1e9", "knn:metric=x", "linear:C=inf", "mlp:hidden=0", "prototypical:x=1"),
    *("longtail:if=0", "longtail:if=1e9", "kshot:k=0", "kshot:k=x", "longtail:profile=step"),
    *("fog:level=none", "fog", "mixed:level=mild", "fog:level=mild,fog=true", "none:level=mild"),
    *("70/15/15", "100/0/0", "0/0/100", "1/1", "a/b/c", "nan/1/1", "70/20/20", "-1/1/1", "1e9/1/1"),
    *("train=0", "train=1", "test=999999", "train=", "val=-1", "train=1,train=2", "train=1e3"),
    *("224x224", "0x0", "32x", "x32", "-32", "1x100000", "resnet18", "resnet19", "timm:", "timm:x"),
    *("resnet18:stem=small", "resnet18:stem=x", "cifar10", "cifar10:root=empty", "cifar10:root="),
    *("logit-adjust:tau=nan", "smote:k=0", "reweight:x=1", "float16,zstd,gzip", "gzip,gzip"),
    *("layer3", "layer9", "layer4.1.conv2", "resnet18@int8", "resnet18@x", "@", "conv1"),
)
"""Values that some option may not expect."""

COSTLY = (
    "--epochs",
    "--episodes",
    "--repeats",
    "--warm-up",
    "--draws",
    "--seeds",
    "--views",
    "--check",
)
"""Options for which a valid number may mean hours: they get small numbers only."""

TOML_VALUES = (
    *("0", "-1", "1.5", "nan", "inf", "true", '""', '"x"', "[]", "[[]]", '[""]', "[0]", "[1.5]"),
    *("[true, 1]", '["a", "a"]', "{}", "{x = 1}", "1979-05-27", "9223372036854775807", '"none"'),
    *(
        '"\\u0000"',
        '"$HOME"',
        '"$NOWHERE"',
        '"~"',
        '"a\\nb"',
        '[["photos"]]',
        '"photos"',
        "'''x'''",
    ),
    *(
        '["svm:C=nan"]',
        '["longtail:if=0"]',
        '["fog"]',
        '["nope"]',
        '{head = "svm"}',
        "[nan]",
        "=",
        "",
    ),
)

SECONDS_PER_CASE = 60


@dataclass
class Case:
    """One mutated command.

    Attributes:
        number: of the case.
        arguments: of the command.
        files: text of the files that differ from ``FILES``.
    """

    number: int
    arguments: list[str]
    files: dict[str, str] = field(default_factory=dict)


class TooSlowError(BaseException):
    """A case that takes longer than ``SECONDS_PER_CASE``."""


def make_case(number: int, seed: int) -> Case:
    """Return a case; the same for the same number and seed."""
    rng = random.Random(f"{seed}:{number}")
    arguments = rng.choice(COMMAND_LINES).split()
    case = Case(number, arguments)
    toml = [name for name in arguments if name.endswith(".toml")]
    for _ in range(rng.randint(1, 3)):
        if toml and rng.random() < 0.8:
            text = case.files.get(toml[0], FILES[toml[0]])
            case.files[toml[0]] = mutate_toml(text, rng)
        else:
            mutate_arguments(case.arguments, rng)
    return case


def mutate_arguments(arguments: list[str], rng: random.Random) -> None:
    """Change one thing in a command line, in place; the name of the command mostly stays."""
    first = 1 if rng.random() < 0.98 else 0
    places = range(first, len(arguments))
    kind = rng.choice(("remove", "repeat", "swap", "replace", "replace", "replace", "alter", "add"))
    if kind == "add" or not places:
        arguments.extend(_random_option(arguments[0] if arguments else "fit", rng))
        return
    place = rng.choice(places)
    before = arguments[place - 1] if place else ""
    if kind == "remove":
        del arguments[place]
    elif kind == "repeat":
        arguments.insert(rng.choice(places), arguments[place])
    elif kind == "swap":
        other = rng.choice(places)
        arguments[place], arguments[other] = arguments[other], arguments[place]
    elif kind == "replace":
        arguments[place] = _hostile_value(before, rng)
    elif before not in COSTLY:
        arguments[place] = _alter(arguments[place], rng)


def _random_option(command: str, rng: random.Random) -> list[str]:
    """Return an option of a command, with a value if it takes one."""
    if command not in COMMANDS or command == "cache":
        return [rng.choice(HOSTILE)]
    found = main.get_command(click.Context(main), command)
    assert found is not None
    options = []
    for each in found.params:
        # Compilation takes a minute for each case.
        if isinstance(each, click.Option) and each.opts[0] != "--compile":
            options.append(each)
    if not options:
        return [rng.choice(HOSTILE)]
    option = rng.choice(options)
    name = option.opts[0]
    return [name] if option.is_flag else [name, _hostile_value(name, rng)]


def _hostile_value(option: str, rng: random.Random) -> str:
    if option in COSTLY:
        return rng.choice(("0", "-1", "1", "2", "x", "", "1.5", "nan"))
    return rng.choice(HOSTILE)


def _alter(text: str, rng: random.Random) -> str:
    """Remove, repeat or insert a character."""
    place = rng.randint(0, len(text))
    kind = rng.choice(("remove", "repeat", "insert"))
    if kind == "remove":
        return text[:place] + text[place + 1 :]
    if kind == "repeat":
        return text[:place] + text[max(0, place - 1) :]
    return text[:place] + rng.choice(":=,/.-_ @\x1b\u202e0") + text[place:]


def mutate_toml(text: str, rng: random.Random) -> str:
    """Change one line of a TOML file."""
    lines = text.split("\n")
    place = rng.randrange(len(lines))
    kind = rng.choice(("remove", "repeat", "value", "value", "value", "key", "alter", "section"))
    key, equals, _ = lines[place].partition(" = ")
    if kind == "remove":
        del lines[place]
    elif kind == "repeat":
        lines.insert(rng.randrange(len(lines)), lines[place])
    elif kind == "value" and equals and key not in ("epochs",):
        lines[place] = f"{key} = {rng.choice(TOML_VALUES)}"
    elif kind == "key":
        lines[place] = f"{rng.choice(('heads', 'seed', 'name', 'why', 'augment', 'x'))} = 1"
    elif kind == "section":
        lines[place] = rng.choice(
            ("[axes]", "[fixed]", "[[skip]]", "[[run]]", "[x]", "[]", "[axes")
        )
    elif key not in ("epochs",):
        lines[place] = _alter(lines[place], rng)
    return "\n".join(lines)


@dataclass(frozen=True)
class Workplace:
    """Folder in which cases run, with runs and cached features that they may use."""

    root: Path
    names: dict[str, str]

    @classmethod
    def make(cls, root: Path) -> Workplace:
        """Write images, files and two runs to a folder that does not exist."""
        template = root / "template"
        rng = np.random.default_rng(0)
        for place, name in enumerate(("blue", "green", "red")):
            (template / "photos" / name).mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 60, (20, 24, 3), dtype=np.uint8)
                pixels[..., 2 - place] += 150
                Image.fromarray(pixels).save(template / "photos" / name / f"{number}.png")
        (template / "empty").mkdir()
        (template / "empty.csv").write_text("")
        for name, text in FILES.items():
            (template / name).write_text(text)
        os.chdir(template)
        for head in ("prototypical", "knn:k=1"):
            done = invoke(f"fit --data photos --head {head} {FAST}".split())
            if done.exit_code:
                raise RuntimeError(done.output)
        one, other = sorted(Path("experiments/runs/photos").iterdir())
        (file,) = Path("cache").glob("*.h5")
        return cls(root, {"FILE": file.name, "RUN": str(one), "OTHER": str(other)})

    @contextmanager
    def opened(self, case: Case) -> Iterator[list[str]]:
        """Make a fresh copy of the folder, enter it and yield the arguments of the case."""
        folder = self.root / "case"
        shutil.copytree(self.root / "template", folder)
        for name, text in case.files.items():
            (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
        os.chdir(folder)
        try:
            yield [self._named(argument) for argument in case.arguments]
        finally:
            os.chdir(self.root)
            shutil.rmtree(folder)

    def _named(self, argument: str) -> str:
        for name, value in self.names.items():
            argument = re.sub(rf"\b{name}\b", lambda match, value=value: value, argument)
        return argument


def invoke(arguments: Sequence[str]) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, list(arguments))


def run_case(case: Case, workplace: Workplace) -> str:
    """Run a case and return what is wrong with its outcome; empty if nothing is."""
    with workplace.opened(case) as arguments, _time_limit(SECONDS_PER_CASE):
        try:
            done = invoke(arguments)
        except TooSlowError:
            return f"took longer than {SECONDS_PER_CASE} s"
        return _fault(done) or _cell_fault(Path())


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Interrupt the block by ``TooSlowError``, where the system has alarms."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise TooSlowError

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _fault(done: Result) -> str:
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        assert done.exc_info is not None
        return "".join(traceback.format_exception(*done.exc_info))
    if done.exit_code not in (0, 1, 2):
        return f"exit code {done.exit_code}"
    if "Traceback" in done.output:
        return done.output
    if done.exit_code == 2 and done.stderr.startswith("Usage: ") and "Commands:\n" in done.stderr:
        return ""  # `featkit cache` prints its help
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    if done.exit_code and (len(errors) != 1 or not done.stderr.rstrip().endswith(errors[0])):
        return f"exit code {done.exit_code} without one line of error at the end:\n{done.stderr}"
    return ""


def _cell_fault(folder: Path) -> str:
    """Return the traceback of a failed cell of a grid that is not by a FeatkitError."""
    for log in sorted(folder.rglob("cells/*.log")):
        text = log.read_text(encoding="utf-8")
        # "featkit.errors.DataError: ..." at the start of a line, as Python writes it.
        if not re.search(r"^featkit\.[\w.]+Error: ", text, re.MULTILINE):
            return text
    return ""


def run_cases(
    numbers: Sequence[int],
    seed: int,
    root: Path,
    show: Callable[[int, str], None] = lambda number, fault: None,
) -> dict[int, str]:
    """Run cases in a folder that exists; return the faults by the number of their case.

    Args:
        numbers: of the cases.
        seed: of all cases.
        root: the folder.
        show: called with each fault when it is found.
    """
    before = Path.cwd()
    try:
        workplace = Workplace.make(root)
        faults = {}
        for number in numbers:
            fault = run_case(make_case(number, seed), workplace)
            if fault:
                faults[number] = fault
                show(number, fault)
        return faults
    finally:
        os.chdir(before)


def _main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the only case to run")
    options = parser.parse_args()
    numbers = range(options.cases) if options.only is None else [options.only]
    start = time.process_time()

    def show(number: int, fault: str) -> None:
        case = make_case(number, options.seed)
        print(f"case {number}: featkit {' '.join(map(ascii, case.arguments))}")
        for name, text in case.files.items():
            print(f"--- {name}\n{text}")
        print(fault)

    with tempfile.TemporaryDirectory() as folder:
        faults = run_cases(numbers, options.seed, Path(folder), show)
    kinds = Counter("".join(make_case(n, options.seed).arguments[:1]) for n in numbers)
    print(", ".join(f"{name} {count}" for name, count in kinds.most_common()))
    seconds = time.process_time() - start
    print(f"{len(numbers)} cases, {len(faults)} failed, {seconds:.0f} s of CPU time")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(_main())
