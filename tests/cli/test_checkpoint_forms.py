"""Every verb that takes a checkpoint takes it in every form, with the same result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from tests.export.checkpoint.gguf_writer import write_gguf
from tests.export.checkpoint.hub_stub import MODEL, hub_stub

from shoal.graphs.contract import MANIFEST_FILE, TOKENIZER_FILES
from shoal.graphs.errors import InputError
from shoal.graphs.fidelity import shipped_text
from shoal.graphs.model_forms import CHECKPOINT_FORMS, model_form
from shoal.runtime import evaluate
from shoal.runtime.commands.cli import main

FORMS = ("folder", "gguf", "hub")

# Runs the commands in argv[1], building the graphs of a config only once; prints exit codes, what
# the commands print, and how often a header of a GGUF file was parsed.
RUN = """
import contextlib, dataclasses, functools, io, json, sys
from shoal.export import plan
from shoal.export.checkpoint.gguf import file
from shoal.runtime.commands.cli import main

build = functools.cache(plan.build_graphs)
plan.build_graphs = lambda config, **options: build(
    dataclasses.replace(config, where=""), **options
)
parse, parsed = file._read, []
file._read = lambda path: (parsed.append(path), parse(path))[1]
found = []
for argv in json.loads(sys.argv[1]):
    parsed.clear()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(argv)
    found.append((code, out.getvalue(), len(parsed)))
print(json.dumps(found))
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the commands did with one form of the checkpoint."""

    records: dict[str, Any]  # by verb: what it printed with --json
    parsed: dict[str, int]  # by verb: GGUF headers
    fetched: list[str]
    stderr: str
    bundle: Path


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-v3 without multi-token prediction, which GGUF files leave out."""
    folder = tmp_path_factory.mktemp("plain") / "tiny"
    shutil.copytree(tiny_checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config["num_nextn_predict_layers"] = 0
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    mtp = f"model.layers.{config['num_hidden_layers']}."
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(mtp)}
    save_file(kept, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def gguf_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(folder, path, GGMLQuantizationType.BF16)


@pytest.fixture(scope="module")
def runs(folder: Path, gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    place = tmp_path_factory.mktemp("runs")
    text = place / "text.txt"
    text.write_text(shipped_text()[:600], encoding="utf-8")
    options = ["--text", str(text), "--window", "64", "--threads", "1"]
    with hub_stub({MODEL: folder}) as hub:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(place / "home")}
        names = dict(zip(FORMS, (str(folder), str(gguf_file), MODEL), strict=True))
        found = {}
        for form, name in names.items():
            bundle, hub.fetched[:] = place / form, []
            commands = {
                "inspect": ["inspect", name],
                "dry run": ["export", name, "b", "--weights", "fp32", "--dry-run"],
                "export": ["export", name, str(bundle), "--weights", "fp32"],
                "verify": ["verify", str(bundle), "--checkpoint", name],
                "eval": ["eval", name, *options],
                "compare": ["eval", str(bundle), "--reference", name, *options],
            }
            argv = json.dumps([[*command, "--json"] for command in commands.values()])
            done = subprocess.run(
                [sys.executable, "-c", RUN, argv],
                env=kept | settings,
                cwd=place,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            answers = dict(zip(commands, json.loads(done.stdout), strict=True))
            assert {verb: code for verb, (code, _, _) in answers.items()} == dict.fromkeys(
                commands, 0
            ), done.stderr
            found[form] = Run(
                records={verb: json.loads(out) for verb, (_, out, _) in answers.items()},
                parsed={verb: count for verb, (_, _, count) in answers.items()},
                fetched=list(hub.fetched),
                stderr=done.stderr,
                bundle=bundle,
            )
    return found


@pytest.mark.parametrize("form", FORMS[1:])
def test_inspect_says_the_same_of_every_form(runs: dict[str, Run], form: str) -> None:
    found, expected = (runs[f].records["inspect"] for f in (form, "folder"))
    assert found | {"path": ""} == expected | {"path": ""}
    assert found["parameters"] > 10e6


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_dry_run_foretells_the_same_of_every_form(runs: dict[str, Run], form: str) -> None:
    found, expected = (runs[f].records["dry run"] for f in (form, "folder"))
    # The vocabulary of a GGUF file becomes a tokenizer.json of another size.
    varying = {"files", "bundle_bytes", "free_bytes"}
    assert {k: v for k, v in found.items() if k not in varying} == {
        k: v for k, v in expected.items() if k not in varying
    }
    bundle = runs[form].bundle
    sizes = {path.name: path.stat().st_size for path in bundle.iterdir()}
    assert found["files"] == {n: size for n, size in sizes.items() if n != MANIFEST_FILE}


@pytest.mark.parametrize("form", FORMS[1:])
def test_export_writes_the_same_graphs_and_weights(runs: dict[str, Run], form: str) -> None:
    ours, theirs = runs[form].bundle, runs["folder"].bundle
    names = {path.name for path in theirs.iterdir()} - {MANIFEST_FILE, *TOKENIZER_FILES}
    assert "weights.bin" in names
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


@pytest.mark.parametrize("form", FORMS)
def test_verify_finds_a_bundle_to_be_what_its_checkpoint_gives(
    runs: dict[str, Run], form: str
) -> None:
    found = runs[form].records["verify"]
    assert found["ok"] is True
    assert found["checkpoint"]["tensors"] == runs["folder"].records["export"]["tensors"]


@pytest.mark.parametrize("form", FORMS[1:])
def test_eval_measures_the_same_of_every_form(runs: dict[str, Run], form: str) -> None:
    (found,), (expected,) = (runs[f].records["eval"]["models"] for f in (form, "folder"))
    assert found["name"] == {"gguf": "tiny.gguf", "hub": "tiny"}[form]
    assert found | {"name": ""} == expected | {"name": ""}
    assert found["perplexity"]["value"] > 1


@pytest.mark.parametrize("form", FORMS)
def test_every_form_can_be_what_a_bundle_is_compared_with(runs: dict[str, Run], form: str) -> None:
    record = runs[form].records["compare"]
    reference, bundle = record["models"]
    (alone,) = runs[form].records["eval"]["models"]
    assert record["reference"] == alone["name"]
    assert reference == alone
    assert bundle["agreement"]["same_top"]["value"] == 1


def test_a_gguf_header_is_parsed_once_for_every_command(runs: dict[str, Run]) -> None:
    assert runs["gguf"].parsed == dict.fromkeys(runs["gguf"].parsed, 1)
    assert len(runs["gguf"].parsed) == 6


def test_headers_are_enough_to_inspect_and_for_a_dry_run(
    runs: dict[str, Run], folder: Path
) -> None:
    weights = [name for name in runs["hub"].fetched if name.startswith("model.safetensors")]
    *headers, whole = weights
    assert len(headers) == 2
    assert all(name.endswith("[0-100000]") for name in headers)
    assert whole == "model.safetensors"
    megabytes = (folder / "model.safetensors").stat().st_size / 1e6
    assert [line for line in runs["hub"].stderr.splitlines() if "fetching" in line] == [
        f"export: fetching {MODEL}, {megabytes:.1f} MB"
    ]


def test_what_the_forms_of_a_name_are(
    folder: Path, gguf_file: Path, fp32_bundle: Path, tmp_path: Path
) -> None:
    found = [model_form(path) for path in (folder, gguf_file, fp32_bundle, tmp_path)]
    assert found == ["folder", "gguf", "bundle", None]
    assert model_form(str(tmp_path / "nowhere.gguf")) == "gguf"
    assert [model_form(name) for name in ("org/name", "org/name.gguf")] == ["hub", "gguf"]
    assert [model_form(path) for path in (Path("org/name"), "./org/name", "name")] == [None] * 3


@pytest.mark.parametrize("verb", ["inspect", "eval", "export", "verify"])
def test_what_is_no_checkpoint_is_told_what_one_is(
    verb: str, fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [verb, str(tmp_path)]
    argv += {"export": [str(tmp_path / "b")], "verify": []}.get(verb, [])
    if verb == "verify":
        argv = [verb, str(fp32_bundle), "--checkpoint", str(tmp_path)]
    assert main(argv) == 1
    (*_, line) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}: expected a ")
    assert CHECKPOINT_FORMS in line


def test_a_bundle_is_no_checkpoint(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(fp32_bundle), str(tmp_path / "b")]) == 1
    assert "; found a bundle; check the path" in capsys.readouterr().err


def test_a_revision_is_for_the_hub_only(
    folder: Path, fp32_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (folder, fp32_bundle):
        assert main(["inspect", str(model), "--revision", "main"]) == 1
        assert f"{model}: --revision is for ORG/NAME" in capsys.readouterr().err
    with pytest.raises(InputError, match="expected ORG/NAME on the Hugging Face Hub"):
        evaluate([fp32_bundle, folder], revision="main")
