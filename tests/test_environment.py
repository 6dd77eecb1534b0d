"""Homes, containers, file systems and long names that are not those of a developer's machine."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import featkit
from featkit import storage
from featkit.arguments import PATH
from featkit.backbones.weights import find_weights, hub_folder
from featkit.errors import DataError, SpecError, StorageError, WeightsError
from featkit.storage import (
    LockHeldError,
    available_cores,
    cpu_quota,
    data_folder,
    locked,
    publish,
    safe_name,
    user_path,
    write_file,
)

SMALL = {
    "data": "digits",
    "weights": "random",
    "resize": 16,
    "crop": 16,
    "limit": "train=20,test=20",
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def no_home(monkeypatch):
    """A user id without an entry, and without HOME, as with ``docker run --user 12345``."""
    pytest.importorskip("pwd")
    monkeypatch.delenv("HOME", raising=False)

    def unknown(*arguments):
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)


# Home folder --------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder_for_cache_and_out(home):
    features = featkit.extract(**SMALL, cache="~/cache")
    featkit.fit(**SMALL, head="prototypical", cache=Path("~/cache"), out="~/out")
    assert len(features.ids) > 20
    assert {path.name for path in home.iterdir()} >= {"cache", "out"}
    assert not Path("~").exists()


def test_a_tilde_in_data_and_in_a_study_is_the_home_folder(home, photos):
    home.mkdir()
    (home / "photos").symlink_to(photos)
    study = home / "grid.toml"
    study.write_text(
        '[axes]\ndata = ["~/photos"]\nhead = ["prototypical"]\n'
        '[fixed]\nresize = "16"\ncrop = "16"\n'.replace("[axes]", '[axes]\nweights = ["random"]')
    )
    result = featkit.ablate(grid="~/grid.toml", cache="~/cache", out="~/out", jobs=1)
    assert [cell.status for cell in result.cells] == ["ok"]
    assert not Path("~").exists()


def test_paths_of_unknown_homes_are_refused_and_file_names_with_a_tilde_kept(no_home):
    for text in ("~", "~/x"):
        for convert in (user_path, lambda given: PATH.check("cache", given)):
            with pytest.raises(SpecError, match="home folder is not known"):
                convert(text)
    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert PATH.check("files", "~$draft.png") == "~$draft.png"
    assert user_path("a/~") == Path("a/~")


@pytest.mark.parametrize("text", ["a\0b", "\0"])
def test_a_null_character_in_a_path_is_refused(text):
    with pytest.raises(SpecError):
        user_path(text)
    with pytest.raises(SpecError):
        featkit.extract(**{**SMALL, "data": text})


def test_an_unknown_home_is_passed_over(no_home, monkeypatch, tmp_path):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    assert hub_folder() is None
    with pytest.raises(WeightsError, match="home folder is not known"):
        find_weights("resnet18", "imagenet")
    (tmp_path / "resnet18.pth").write_bytes(b"weights")
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(tmp_path))
    assert find_weights("resnet18", "imagenet").path == tmp_path / "resnet18.pth"
    monkeypatch.setenv("TORCH_HOME", "/somewhere")
    assert hub_folder() == Path("/somewhere/hub/checkpoints")
    with pytest.raises(DataError, match="set FEATKIT_DATA or HOME"):
        data_folder()
    monkeypatch.setenv("FEATKIT_DATA", "/elsewhere")
    assert data_folder() == Path("/elsewhere")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_an_unknown_user_without_home_extracts_features(tmp_path):
    """As the container does: with another user id and no HOME."""
    program = "import os; os.setgid(12345); os.setuid(12345); from featkit.cli import main; main()"
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        folder.chmod(folder.stat().st_mode | 0o001)
    arguments = ["extract", "--data", "digits", "--limit", "train=20,test=10", "--weights"]
    arguments += ["random", "--resize", "16", "--crop", "16", "--cache", str(tmp_path / "c")]
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True
    )
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip("the packages are in a folder that others cannot read")
    assert done.returncode == 0, done.stderr


# Cores --------------------------------------------------------------------------------------------


def groups(tmp_path, line, files):
    """Write control groups; return the quota that they give."""
    (tmp_path / "cgroup").write_text(line)
    for name, content in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return cpu_quota(tmp_path / "fs", tmp_path / "cgroup")


@pytest.mark.parametrize(
    ("line", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a\n", {"a/cpu.max": "300000 100000\n", "cpu.max": "100000 100000\n"}, 1.0),
        ("0::/of/the/host\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/../..\n", {"cpu.max": "150000 100000\n"}, 1.5),
        (
            "4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "50000"},
            2.0,
        ),
        ("4:cpu:/a\n", {"cpu/cpu.cfs_quota_us": "25000", "cpu/cpu.cfs_period_us": "50000"}, 0.5),
        ("4:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "50000"}, None),
        (
            "4:memory:/a\n",
            {"cpu/cpu.cfs_quota_us": "25000", "cpu/cpu.cfs_period_us": "50000"},
            None,
        ),
        ("0::/\n", {"cpu.max": "x y z"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
        ("nonsense\n", {}, None),
        ("", {}, None),
    ],
)
def test_the_quota_of_a_container_is_read(tmp_path, line, files, quota):
    assert groups(tmp_path, line, files) == quota


def test_there_is_no_quota_without_control_groups(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "missing") is None


@pytest.fixture
def eight_cores(monkeypatch):
    for name in ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(storage, "_bound_cores", lambda: 8)
    monkeypatch.setattr(storage, "cpu_quota", lambda: None)
    return monkeypatch


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (2.0, 2), (1.5, 2), (0.1, 1), (64.0, 8)])
def test_a_quota_limits_the_cores(eight_cores, quota, cores):
    eight_cores.setattr(storage, "cpu_quota", lambda: quota)
    assert available_cores() == cores


@pytest.mark.parametrize(
    ("value", "cores"), [("1", 1), ("4", 4), ("99", 8), ("4,2", 4), ("0", 1), ("", 8), ("x", 8)]
)
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT"])
def test_environment_variables_limit_the_cores(eight_cores, name, value, cores):
    eight_cores.setenv(name, value)
    assert available_cores() == cores


def test_the_search_of_a_head_starts_no_more_threads_than_there_are_cores(eight_cores):
    from featkit.heads import base

    seen = []

    def record(function, items, threads, **options):
        seen.append(threads)
        return map(function, items)

    eight_cores.setattr(base, "in_threads", record)
    eight_cores.setattr(storage, "cpu_quota", lambda: 3.0)
    assert list(base.fit_in_threads(abs, [-1])) == [1]
    assert seen == [3]


def test_a_quota_limits_the_threads_of_libraries_that_the_command_line_loads(eight_cores):
    from featkit.cli.main import limit_threads

    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        eight_cores.setenv(name, "7")
    eight_cores.setattr(storage, "cpu_quota", lambda: 2.0)
    limit_threads()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("2", "7")


# File systems -------------------------------------------------------------------------------------


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def no_flock(request, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*arguments):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_locks_work_on_file_systems_without_flock(tmp_path, no_flock):
    lock = tmp_path / ".work.lock"
    with locked(lock):
        with pytest.raises(LockHeldError, match=f"locked by process {os.getpid()}"), locked(lock):
            pass
        assert storage.lock_owner(lock).startswith(f"process {os.getpid()}")
    assert list(tmp_path.iterdir()) == []
    with locked(lock):
        pass
    for content in ("old", "new"):
        publish(tmp_path / "run", {"a": content})
    assert (tmp_path / "run" / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.skipif(os.name != "posix", reason="no fcntl")
def test_the_lock_of_a_dead_process_is_broken_without_flock(tmp_path):
    program = (
        "import errno, fcntl, os, sys; from pathlib import Path\n"
        "def refuse(*a): raise OSError(errno.ENOTSUP, 'no')\n"
        "fcntl.flock = refuse\n"
        "from featkit.storage import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    if len(sys.argv) > 2: os._exit(0)\n"
    )
    lock = tmp_path / ".lock"
    subprocess.run([sys.executable, "-c", program, str(lock), "die"], check=True)
    assert storage.lock_owner(lock) == ""
    subprocess.run([sys.executable, "-c", program, str(lock), "die"], check=True)
    assert lock.with_suffix(".softlock").exists()
    subprocess.run([sys.executable, "-c", program, str(lock)], check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_long_names_are_shortened_and_stay_different():
    long = "a" * 300
    names = [safe_name(long), safe_name(f"{long}b"), safe_name("é" * 300), safe_name(f"{long}/c")]
    assert all(len(name) <= 120 for name in names)
    assert len(set(names)) == 4
    assert safe_name("b" * 120) == "b" * 120


def test_a_file_with_the_longest_possible_name_is_written(tmp_path):
    for name in ("n" * 255, "é" * 127):
        write_file(tmp_path / name, "content")
        assert (tmp_path / name).read_text() == "content"
    with pytest.raises(StorageError, match="choose shorter names"):
        write_file(tmp_path / ("n" * 256), "content")
    with pytest.raises(StorageError, match="choose shorter names"):
        publish(tmp_path / ("n" * 256), {"a": ""})
    assert len(list(tmp_path.iterdir())) == 2


def test_images_in_a_folder_with_a_long_name_are_extracted(photos):
    data = photos.rename(photos.with_name("p" * 250))
    found = featkit.extract(
        data=data, weights="random", resize=16, crop=16, cache=photos.parent / "cache"
    )
    assert len(found.ids) == 24


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EROFS, "choose a folder that you may write to"),
        (errno.EACCES, "choose a folder that you may write to"),
        (errno.ENOSPC, "free disk space"),
        (errno.EIO, "free disk space"),
        (errno.ENOENT, "No such file or directory; choose another folder"),
        (errno.ENOTDIR, "Not a directory; choose another folder"),
    ],
)
def test_the_advice_fits_the_reason(tmp_path, monkeypatch, code, advice):
    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "mkdir", refuse)
    for write in (
        lambda: write_file(tmp_path / "new" / "file", ""),
        lambda: publish(tmp_path / "new" / "run", {"a": ""}),
    ):
        with pytest.raises(StorageError, match=f"cannot write .*{advice}"):
            write()
