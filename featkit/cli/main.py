"""`featkit`, and what it does when something goes wrong."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from featkit import __version__
from featkit.cli.memory import keep_freed_memory
from featkit.errors import FeatkitError

_STUDIES = ("fewshot", "audit", "ablate", "longtail", "robustness")
VERBS = (
    *("extract", "fit", "finetune", "distill", "compare", "predict"),
    *_STUDIES,
    *("profile", "prune", "quantize", "export"),
    *("cache", "models", "heads"),
)

EPILOG = """\b
Examples:
  featkit extract --data photos --backbone resnet50
  featkit fit --head svm
  featkit ablate

\b
What these do:
  photos/<class>/*.jpg go through a ResNet-50 once; the vectors are kept in cache/.
  A head is fitted on the newest cache and judged on test images it never saw.
  Backbones and heads are compared in one table, each number with its interval.
"""


class Verbs(click.Group):
    """The verbs, each in its own module; an error that the user can put right is one line and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(import_module(f"featkit.cli.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except FeatkitError as error:
            raise click.ClickException(str(error)) from error


@click.group(
    cls=Verbs, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="featkit")
def main() -> None:
    """Images to embeddings, once; then classical heads, judged with numbers one can publish.

    Results go to stdout, progress and what was chosen by default to stderr.
    Exit code 0: good, 1: something to put right, said in one line, 2: wrong usage.
    """
    keep_freed_memory()
