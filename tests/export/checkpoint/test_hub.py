"""Checkpoints by their name on the hub: a stub of it on loopback, and no hub at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.export.checkpoint.hub_stub import (
    GATED,
    MERGED,
    MODEL,
    PICKLED,
    PRIVATE,
    TOKEN,
    HubStub,
    hub_stub,
)

from shoal.export.checkpoint.hub import HubAccess, local_checkpoint
from shoal.export.checkpoint.safetensors_files import SafetensorsFiles
from shoal.graphs.errors import InputError

pytestmark = pytest.mark.dependencies

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
UNWANTED = ("pytorch_model.bin", "modeling_deepseek.py", "consolidated.safetensors", "README.md")
NOWHERE = "http://127.0.0.1:9"  # the discard port, which nothing listens on

# Fetches every name in argv[2:] with the token in argv[1] and says what came of each.
FETCH = """
import json, sys
from shoal.export.checkpoint.hub import HubAccess, local_checkpoint
from shoal.graphs.errors import ShoalError

answers = []
for name in sys.argv[2:]:
    name, _, revision = name.partition("@")
    try:
        access = HubAccess(revision=revision or None, token=sys.argv[1] or None)
        answers.append(str(local_checkpoint(name, access)))
    except ShoalError as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps(answers))
"""

# Says what an export with the options in argv would do, then does it, building graphs only once.
DRY_RUN_AND_EXPORT = """
import dataclasses, functools, sys
from shoal.export import plan
from shoal.runtime.commands.cli import main

build = functools.cache(plan.build_graphs)
plan.build_graphs = lambda config, **options: build(
    dataclasses.replace(config, where=""), **options
)
sys.exit(main([*sys.argv[1:], "--dry-run", "--json"]) or main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def hub(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubStub]:
    """tiny-v3 in two shards beside files that an export has no use for."""
    folder = tmp_path_factory.mktemp("hub")
    model, pickled = folder / "model", folder / "pickled"
    shutil.copytree(tiny_checkpoint, model, ignore=shutil.ignore_patterns("*.safetensors", "*.md"))
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    names = sorted(tensors)
    shards = {SHARDS[0]: names[:40], SHARDS[1]: names[40:]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, model / file)
    places = {name: file for file, held in shards.items() for name in held}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for file in UNWANTED:
        (model / file).write_bytes(b"not wanted")
    pickled.mkdir()
    shutil.copy(tiny_checkpoint / "config.json", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"not wanted")
    merged = folder / "merged"
    shutil.copytree(model, merged, ignore=shutil.ignore_patterns(*UNWANTED))
    save_file({"lm_head.weight": torch.zeros(2, 2)}, merged / "model.safetensors")
    models = {MODEL: model, GATED: model, PRIVATE: model, PICKLED: pickled, MERGED: merged}
    with hub_stub(models) as stub:
        yield stub


@pytest.fixture
def python(hub: HubStub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs python in a process of its own with the stub as the hub and an empty cache."""

    def run(*argv: str, **changes: str) -> subprocess.CompletedProcess[str]:
        hub.fetched.clear()
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        return subprocess.run(
            [sys.executable, *argv],
            env=kept | settings | changes,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def answers(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_an_export_from_the_hub_is_that_of_the_folder(
    hub: HubStub,
    python: Callable[..., subprocess.CompletedProcess[str]],
    fp32_bundle: Path,
    tmp_path: Path,
) -> None:
    options = ["--weights", "fp32", "--no-fidelity"]
    done = python("-c", DRY_RUN_AND_EXPORT, "export", MODEL, "b", *options)
    assert done.returncode == 0, done.stderr
    weights = [name for name in hub.fetched if name.startswith("model-")]
    assert set(weights[:2]) == {f"{shard}[0-100000]" for shard in SHARDS}  # headers will do
    assert set(weights[2:]) == set(SHARDS)
    assert done.stderr.splitlines()[0] == f"export: fetching {MODEL}, 29.9 MB"
    assert "|" not in done.stderr, "a bar was drawn, but this is no terminal"
    names = sorted(path.name for path in fp32_bundle.iterdir())
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
    for name in names:
        assert (tmp_path / "b" / name).read_bytes() == (fp32_bundle / name).read_bytes(), name
    foretold, _ = json.JSONDecoder().raw_decode(done.stdout)
    assert foretold["files"] == {
        name: (fp32_bundle / name).stat().st_size for name in names if name != "manifest.json"
    }


def test_only_what_an_export_reads_is_fetched_and_only_once(
    hub: HubStub, python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    cache = tmp_path / "elsewhere"
    (folder,) = answers(python("-c", FETCH, "", MODEL, HF_HUB_CACHE=str(cache)))
    assert Path(folder).is_relative_to(cache)
    there = {path.name for path in hub.models[MODEL].iterdir()}
    assert {path.name for path in Path(folder).iterdir()} == there - {*UNWANTED, "NOTICE"}
    offline = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    assert answers(python("-c", FETCH, "", MODEL, **offline)) == [folder]
    unreachable = {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": NOWHERE}
    assert answers(python("-c", FETCH, "", f"{MODEL}@main", **unreachable)) == [folder]
    assert hub.fetched == []


def test_a_repository_with_an_index_left_over_has_the_weights_of_its_folder(
    hub: HubStub, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (found,) = answers(python("-c", FETCH, "", MERGED))
    assert [name for name in hub.fetched if name.startswith("model-")] == []
    ours, theirs = (SafetensorsFiles.open(path) for path in (Path(found), hub.models[MERGED]))
    assert {header.file.name for header in ours.headers.values()} == {"model.safetensors"}
    assert ours.headers.keys() == theirs.headers.keys()


def test_of_a_repository_with_an_index_left_over_the_single_files_header_is_looked_at(
    hub: HubStub, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = python("-m", "shoal.runtime.commands.cli", "inspect", MERGED)
    assert "missing model.embed_tokens.weight" in done.stderr
    weights = [name for name in hub.fetched if ".safetensors" in name and ".index" not in name]
    assert weights == ["model.safetensors[0-100000]"]


def test_refusals_of_the_hub_are_one_line_with_advice(
    hub: HubStub, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    names = ["no/where", PRIVATE, GATED, f"{MODEL}@v9", PICKLED, "no--t/valid"]
    found = answers(python("-c", FETCH, "", *names))
    assert found == [
        f"CheckpointError: {name.partition('@')[0]}: {reason}"
        for name, reason in zip(
            names,
            [
                *[
                    f"no such folder here and no such public model on {hub.endpoint}; check the "
                    "name, and give --token or set HF_TOKEN for a private one"
                ]
                * 2,
                f"its owners let only those read it who asked: do so on {hub.endpoint}/{GATED}, "
                "then give --token or set HF_TOKEN",
                f"has no revision v9 on {hub.endpoint}; check --revision",
                "expected weights in safetensors, found no model.safetensors on the hub; choose "
                "another revision or convert the model",
                "no such folder here and no possible name on the Hugging Face Hub; check the path",
            ],
            strict=True,
        )
    ]
    assert [name for name in hub.fetched if name.endswith((".bin", ".py"))] == []


@pytest.mark.parametrize(("argument", "settings"), [(TOKEN, {}), ("", {"HF_TOKEN": TOKEN})])
def test_a_token_opens_private_and_gated_models(
    argument: str,
    settings: dict[str, str],
    python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    for folder in answers(python("-c", FETCH, argument, PRIVATE, GATED, **settings)):
        assert (Path(folder) / SHARDS[1]).exists(), folder


@pytest.mark.parametrize("settings", [{"HF_ENDPOINT": NOWHERE}, {"HF_HUB_OFFLINE": "1"}])
def test_without_hub_and_copy_the_message_says_so(
    settings: dict[str, str], python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (found,) = answers(python("-c", FETCH, "", MODEL, **settings))
    assert "cannot be reached and the cache has no complete copy" in found
    assert found.count("\n") == 0


def test_a_folder_goes_before_a_model_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / MODEL).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_checkpoint(MODEL, HubAccess(token="unused")) == Path(MODEL)
    with pytest.raises(InputError, match="--revision is for ORG/NAME"):
        local_checkpoint(MODEL, HubAccess(revision="main"))


@pytest.mark.parametrize("path", ["./a/b", "a/b/", "a", "/a/b", "../a", "a/b/c"])
def test_what_looks_like_a_path_is_never_asked_for(path: str) -> None:
    assert local_checkpoint(path, HubAccess()) == Path(path)
