"""What the pages may read, and what they refuse."""

from __future__ import annotations

import pytest

from featkit.app.settings import (
    AppSettings,
    available_runs,
    check_settings,
    named_data,
    resolve_data,
    resolve_run,
    runs_below,
)
from featkit.errors import DataError, RunError


def test_settings_survive_the_way_through_the_environment(settings):
    assert AppSettings.from_json(settings.to_json()) == settings


def test_runs_are_found_in_folders_and_by_themselves(settings, project, runs):
    assert set(runs_below([project / "runs"])) == set(runs)
    assert runs_below([runs[0]]) == [runs[0]]
    assert set(available_runs(settings)) == set(runs)


def test_a_folder_below_the_named_images_may_be_read(settings, project):
    folder = project / "photos" / "train"
    assert resolve_data(settings, str(folder)) == str(folder)
    assert resolve_data(settings, "digits") == "digits"
    assert named_data(settings) == [str(project / "photos"), "digits"]


@pytest.mark.parametrize("spec", ["", "/", "/etc", "..", "cifar10:root=/", "~", "photos/../.."])
def test_other_images_are_refused(settings, spec):
    with pytest.raises(DataError, match="was not named when the app was started"):
        resolve_data(settings, spec)


@pytest.mark.parametrize("step", ["..", "train/../../cache", "link"])
def test_paths_that_lead_out_of_the_named_folder_are_refused(settings, project, step):
    link = project / "photos" / "link"
    if not link.exists():
        link.symlink_to(project / "cache")
    with pytest.raises(DataError, match="was not named"):
        resolve_data(settings, str(project / "photos" / step))
    link.unlink()


def test_a_missing_folder_below_the_named_images_is_reported(settings, project):
    with pytest.raises(DataError, match="is not a folder"):
        resolve_data(settings, str(project / "photos" / "nothing"))


def test_other_runs_are_refused(settings, project):
    with pytest.raises(RunError, match="is not among the runs of this app"):
        resolve_run(settings, str(project))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"runs": ("nowhere",)}, "there is no run at"),
        ({"runs": ("photos",)}, "holds no run and no exported file"),
        ({"data": ("nowhere",)}, "do not exist"),
        ({"studies": ("nowhere",)}, "is not a folder"),
    ],
)
def test_paths_that_do_not_exist_are_reported_at_the_start(project, changed, message):
    values = {}
    for name, paths in changed.items():
        resolved = tuple(project / path for path in paths)
        values[name] = tuple(map(str, resolved)) if name == "data" else resolved
    with pytest.raises((RunError, DataError), match=message):
        check_settings(AppSettings(**values))
