"""``featkit completion``."""

from __future__ import annotations

import click

from featkit.cli.options import command

EPILOG = """\b
Examples:
  featkit completion bash

\b
Bash and zsh: add this line to ~/.bashrc or ~/.zshrc (for zsh, replace bash by zsh).
  eval "$(featkit completion bash)"
Fish: save the script of `featkit completion fish` in ~/.config/fish/completions/featkit.fish.
"""


@command(epilog=EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes featkit's commands and options in a shell."""
    from click.shell_completion import get_completion_class

    completion_class = get_completion_class(shell)
    assert completion_class is not None, shell
    root = ctx.find_root().command
    click.echo(completion_class(root, {}, "featkit", "_FEATKIT_COMPLETE").source())
