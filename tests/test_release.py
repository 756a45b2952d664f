"""What a release builds, and that its check would notice what is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

check_dist = pytest.importorskip("check_dist", reason="an sdist holds no workflows")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and an sdist, built as `make dist` does."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True, timeout=300)
    return folder


@pytest.fixture
def copy(dist: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dist, tmp_path / "dist"))


def rewrite_wheel(dist: Path, keep: Callable[[str], bool], add: tuple[str, ...] = ()) -> None:
    """The wheel with some of its files, and more that are empty."""
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if keep(n)]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*names, *add]:
            archive.writestr(name, b"")


def add_to_sdist(dist: Path, name: str) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    root = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as packed:
        names = packed.getnames()
    with tarfile.open(sdist, "w:gz") as packed:
        for each in [*names, f"{root}/{name}"]:
            packed.addfile(tarfile.TarInfo(each))


@pytest.mark.slow
def test_what_is_built_is_complete_and_the_tag_must_be_its_version(dist: Path) -> None:
    import saebench_meta

    version = saebench_meta.__version__
    assert list(check_dist.faults(dist, f"v{version}")) == []
    assert list(check_dist.faults(dist, "v99")) == [f"the tag v99 is not that of version {version}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["saebench_meta/schema/", "saebench_meta/templates/explorer/", "saebench_plugins/atlas/data/"]
)
def test_a_wheel_without_its_data_is_noticed(copy: Path, folder: str) -> None:
    rewrite_wheel(copy, lambda name: not name.startswith(folder))
    assert all(fault.startswith(f"the wheel holds nothing like {folder}") for fault in check_dist.faults(copy))
    assert list(check_dist.faults(copy))


@pytest.mark.slow
def test_a_wheel_with_something_vendored_without_its_licence_is_noticed(copy: Path) -> None:
    rewrite_wheel(copy, lambda name: True, add=("saebench_meta/templates/new/vendor/thing.js",))
    assert list(check_dist.faults(copy)) == ["the wheel holds saebench_meta/templates/new/vendor without its licence"]


@pytest.mark.slow
def test_a_wheel_with_a_fourth_package_is_noticed(copy: Path) -> None:
    rewrite_wheel(copy, lambda name: True, add=("tests/test_a.py",))
    assert list(check_dist.faults(copy)) == ["the wheel holds tests, which is none of its packages"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["leaderboard/results/a/record.json", ".github/pins.md", "../outside.py"])
def test_an_sdist_with_what_is_not_for_it_is_noticed(copy: Path, name: str) -> None:
    add_to_sdist(copy, name)
    assert list(check_dist.faults(copy)) == [f"the sdist holds {name}"]


def test_one_of_each_is_wanted(tmp_path: Path) -> None:
    assert [f.partition(" holds ")[2] for f in check_dist.faults(tmp_path)] == [
        "0 wheels and 0 sdists, not one of each"
    ]
