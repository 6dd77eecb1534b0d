"""Training configuration from options."""

import inspect
from dataclasses import fields

import pytest

from featkit.errors import SpecError
from featkit.images import augment
from featkit.training import config
from featkit.training.config import TrainingConfig, option_fields


def test_every_field_but_request_and_cache_is_an_option():
    names = {each.name for each in fields(TrainingConfig)}
    assert {each.name for each in option_fields()} == names - {"request", "cache"}
    assert names - {"request", "cache"} < set(TrainingConfig.option_names())


def test_options_fill_the_configuration_and_the_request():
    options = {"mode": "full", "epochs": 3, "backbone": "resnet50", "resize": 64, "seed": 5}
    config = TrainingConfig.from_options({**options, "lr": None, "frozen_precision": "fp32"})
    assert (config.mode, config.epochs, config.lr, config.seed) == ("full", 3, 0.01, 5)
    request = config.request
    assert (request.backbone, request.resize, request.seed) == ("resnet50", "64", 5)
    assert (request.precision, config.precision) == ("fp32", "auto")


@pytest.mark.parametrize(
    ("options", "augment"),
    [
        ({"data": "photos"}, "basic"),
        ({"data": "digits"}, None),
        ({"data": "photos", "mode": "shallow"}, None),
        ({"data": "photos", "augment": "none"}, None),
        ({"data": "digits", "augment": "shift"}, "shift"),
    ],
)
def test_the_default_augmentation_depends_on_data_and_mode(options, augment):
    assert TrainingConfig.from_options(options).augment == augment


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": 3}, "unknown training option 'speed'"),
        ({"epochs": "3"}, "epochs = '3' is not a whole number"),
        ({"lr": "x"}, "lr = 'x' is not a number"),
        ({"data": 3.5}, "data = 3.5 is not a string"),
        ({"mode": "deeep"}, "did you mean deep"),
        ({"lr": -1.0}, "lr -1 is below 0"),
        ({"val": 1.0}, "val 1 is above 0.9"),
        ({"patience": 3, "val": 0.0}, "--patience needs validation images"),
    ],
)
def test_an_invalid_option_is_refused(options, message):
    with pytest.raises(SpecError, match=message):
        TrainingConfig.from_options(options)


def test_both_spellings_of_logit_adjustment_are_accepted():
    one, other = (TrainingConfig(balance=name) for name in ("logit-adjust", "logit_adjust"))
    assert one == other


def test_names_in_the_fingerprint_are_those_of_version_0_1_0():
    """Another name would change the run ids of trainings."""
    assert list(TrainingConfig().to_dict()) == [
        *("mode", "unfreeze", "norm", "epochs", "batch_size", "optimiser", "lr", "layer_decay"),
        *("weight_decay", "warmup", "smoothing", "mixup", "cutmix", "ema", "clip", "balance"),
        *("patience", "precision", "seed", "augment", "views"),
    ]


def test_the_command_line_and_the_api_have_every_option():
    from featkit import api
    from featkit.cli.finetune import finetune

    names = set(TrainingConfig.option_names())
    assert names <= {each.name for each in finetune.params}
    assert names <= inspect.signature(api.finetune).parameters.keys()


def test_augmentations_are_those_of_images():
    assert config.AUGMENTATIONS == augment.AUGMENTATIONS
    assert config.MOST_VIEWS == augment.MOST_VIEWS
