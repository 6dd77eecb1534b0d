"""Options of the commands that train a network: finetune and distill."""

from __future__ import annotations

from dataclasses import Field
from typing import Any

import click

from featkit.arguments import MAX_COUNT
from featkit.cli.options import (
    Decorator,
    FiniteRange,
    device_option,
    integers,
    option,
    size_options,
    source_options,
    stack,
)
from featkit.training.config import PRECISIONS, REQUEST_OPTIONS, option_fields
from featkit.training.config import Option as TrainingOption


class BalanceChoice(click.Choice[str]):
    """The corrections of a training; ``logit_adjust`` and ``oversample`` are other names."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the correction's name with hyphens."""
        name = str(value).replace("_", "-")
        return super().convert("resample" if name == "oversample" else name, param, ctx)


def _config_option(each: Field[Any]) -> Decorator:
    """Return the option that fills a field of ``TrainingConfig``; None if it is not given."""
    setting: TrainingOption = each.metadata["option"]
    default = each.default
    names = [f"--{each.name.replace('_', '-')}", each.name]
    if each.name == "optimiser":
        names.insert(1, "--optimizer")
    return option(
        *names,
        group=setting.group,
        type=_value_type(each, setting),
        metavar=setting.metavar or None,
        help=setting.help,
        show_default=setting.default or (default if isinstance(default, str) else f"{default:g}"),
    )


def _value_type(each: Field[Any], setting: TrainingOption) -> click.ParamType[Any] | None:
    """Return the type of an option's values; None for any text."""
    if each.name == "balance":
        return BalanceChoice(setting.choices)
    if setting.choices:
        return click.Choice(setting.choices)
    if each.type in ("int", "int | None"):
        low = None if setting.low is None else int(setting.low)
        high = None if setting.high is None else int(setting.high)
        return integers(low or 0, high or MAX_COUNT)
    if each.type == "float":
        return FiniteRange(setting.low, setting.high)
    return None


_CONFIG_OPTIONS: dict[str, Decorator] = {
    each.name: _config_option(each) for each in option_fields()
}

mode_option = _CONFIG_OPTIONS.pop("mode")


def config_options(*names: str) -> Decorator:
    """Return the options of some fields of ``TrainingConfig``."""
    return stack(*(_CONFIG_OPTIONS[name] for name in names))


training_options = stack(
    source_options,
    option(
        "--weights",
        group="Backbone",
        metavar="SPEC",
        help="Initial weights, as --weights of `featkit extract`.",
        show_default="imagenet; random for scratch",
    ),
    size_options,
    *(added for name, added in _CONFIG_OPTIONS.items() if name not in REQUEST_OPTIONS),
    option(
        "--frozen-precision",
        group="Training",
        type=click.Choice(PRECISIONS),
        help="Numeric precision of frozen layers and of evaluation.",
        show_default="auto",
    ),
    option(
        "--resume",
        group="Training",
        is_flag=True,
        help="Resume an interrupted training with the same options from its last checkpoint.",
    ),
    device_option,
)
"""The options of commands that train a network, generated from the fields of ``TrainingConfig``."""
