"""An export that is killed or stopped at any moment leaves the target as it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.acceptance.export_process import POINTS, start_export

from shoal.export.writing import folder
from shoal.graphs.errors import BundleError
from shoal.runtime.bundle import Bundle

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def target(place: Path, linkable_bundle: Path) -> Path:
    """A finished bundle of float weights; the exports here write int8."""
    shutil.copytree(linkable_bundle, place / "bundle", copy_function=os.link)
    return place / "bundle"


def assert_whole(bundle: Path, weights: str) -> None:
    opened = Bundle.open(bundle)
    opened.verify_files()
    assert opened.manifest.weights == weights


def export_again(checkpoint: Path, target: Path) -> None:
    """What a user does next: it succeeds, and nothing but the bundle is there afterwards."""
    process = start_export(checkpoint, target)
    process.join()
    assert process.exitcode == 0
    assert_whole(target, "int8")
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_the_old_bundle_until_the_new_one_is_complete(
    tiny_checkpoint: Path, target: Path, point: str
) -> None:
    process = start_export(tiny_checkpoint, target, point=point, kill=signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert_whole(target, "int8" if point == "after the rename" else "fp32")
    export_again(tiny_checkpoint, target)


@pytest.mark.parametrize("point", ["begun", "half of the weights written", "before the rename"])
def test_a_kill_leaves_nothing_that_opens_where_nothing_was(
    tiny_checkpoint: Path, place: Path, point: str
) -> None:
    process = start_export(tiny_checkpoint, place / "new", point=point, kill=signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (place / "new").exists()
    for left in place.iterdir():
        assert left.name.startswith(".new.exporting")
        if point != "before the rename":  # by then it is complete, but for its name
            with pytest.raises(BundleError):
                Bundle.open(left)
    export_again(tiny_checkpoint, place / "new")


@pytest.mark.parametrize("after_s", [0.05, 0.15, 0.3, 0.5])
def test_a_kill_from_outside_at_any_time_leaves_the_old_bundle(
    tiny_checkpoint: Path, target: Path, after_s: float
) -> None:
    process = start_export(tiny_checkpoint, target, slow_s=0.02)
    wait_for(target.with_name(f".{target.name}.exporting"))
    time.sleep(after_s)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert_whole(target, "fp32")


@pytest.mark.parametrize("stop", STOPS)
def test_stopping_cleans_up_at_once(tiny_checkpoint: Path, target: Path, stop: int) -> None:
    process = start_export(tiny_checkpoint, target, point="half of the weights written", kill=stop)
    process.join()
    assert process.exitcode == 130
    assert os.listdir(target.parent) == [target.name]
    assert_whole(target, "fp32")


def test_the_command_stopped_while_it_traces_says_so_and_cleans_up(
    tiny_checkpoint: Path, place: Path
) -> None:
    command = [sys.executable, "-m", "shoal.runtime.commands.cli", "export"]
    process = subprocess.Popen(
        [*command, str(tiny_checkpoint), str(place / "new")], stderr=subprocess.PIPE, text=True
    )
    wait_for(place / ".new.exporting")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped"
    assert "Traceback" not in errors
    assert os.listdir(place) == []


@pytest.mark.parametrize("killed_at", ["before", "between", "after"])
def test_where_folders_cannot_be_swapped_the_old_bundle_comes_back(
    tiny_checkpoint: Path, target: Path, killed_at: str
) -> None:
    """Some file systems only rename: a kill between two renames leaves the old bundle aside."""
    aside = folder._aside(target)
    work = target.with_name(f".{target.name}.exporting")
    shutil.copytree(target, work)
    if killed_at != "before":
        target.rename(aside)
    if killed_at == "after":
        work.rename(target)
    process = start_export(tiny_checkpoint, target, point="begun", kill=signal.SIGKILL)
    process.join()
    assert_whole(target, "fp32")
    export_again(tiny_checkpoint, target)


RESUMED = ("--resume", "--fidelity-tokens", "256")


@pytest.fixture(scope="module")
def uninterrupted(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("uninterrupted") / "bundle"
    start_export(tiny_checkpoint, bundle, options=RESUMED[1:]).join()
    return bundle


@pytest.mark.parametrize("seed", [1, 2])
def test_an_export_killed_anywhere_is_resumed_to_the_same_bytes(
    tiny_checkpoint: Path, place: Path, uninterrupted: Path, seed: int
) -> None:
    """Killed at three random places, the first time without --resume; then left alone."""
    places = sorted(np.random.default_rng(seed).uniform(0.02, 0.98, 3).round(4))
    for share in places:
        options = RESUMED[1:] if share == places[0] else RESUMED
        process = start_export(
            tiny_checkpoint, place / "b", point=str(share), kill=signal.SIGKILL, options=options
        )
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"not killed at {share}"
        assert not (place / "b").exists()
    process = start_export(tiny_checkpoint, place / "b", options=RESUMED)
    process.join()
    assert process.exitcode == 0
    assert os.listdir(place) == ["b"]
    assert _contents(place / "b") == _contents(uninterrupted)


def _contents(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    import multiprocessing

    yield
    assert multiprocessing.active_children() == []
