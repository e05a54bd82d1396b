"""An export that was stopped is continued, to the very bytes of one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.export.family_cases import CASES
from tests.export.oracle import make_v3, save

from shoal.export.pipeline import export_bundle
from shoal.export.writing.journal import JOURNAL_FILE
from shoal.graphs.contract import WEIGHTS_FILE
from shoal.graphs.errors import ExportError

TOKENIZER = Path(__file__).parents[3] / "checkpoints" / "tiny-v3" / "tokenizer.json"


class Stopped(Exception):
    """Raised where a test stops an export."""


def stop_at(prefix: str) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, what: str) -> None:
        if what.startswith(prefix):
            raise Stopped

    return progress


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small, with a vocabulary that the shipped text can be read in."""
    sizes = {"vocab_size": 4096, "hidden_size": 64, "q_lora_rank": 32, "kv_lora_rank": 32}
    sizes |= {"qk_nope_head_dim": 16, "v_head_dim": 16, "moe_intermediate_size": 32}
    folder = save(make_v3(**sizes, intermediate_size=32), tmp_path_factory.mktemp("resume"))
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    return folder


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an export that nobody stopped."""
    bundle = tmp_path_factory.mktemp("whole") / "b"
    export_bundle(checkpoint, bundle, fidelity_tokens=256)
    return contents(bundle)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "stops",
    [
        ["embed_tokens"],
        ["layers.1.mlp.experts.down"],
        ["layers.0.self_attn.o_proj", "layers.2.input", "lm_head"],
    ],
    ids=str,
)
def test_a_resumed_export_gives_the_bytes_of_an_uninterrupted_one(
    checkpoint: Path, whole: dict[str, bytes], tmp_path: Path, stops: list[str]
) -> None:
    bundle = tmp_path / "b"
    for stop in stops:
        with pytest.raises(Stopped):
            export_bundle(
                checkpoint, bundle, fidelity_tokens=256, resume=True, progress=stop_at(stop)
            )
        assert not bundle.exists()
    written: list[str] = []
    export_bundle(
        checkpoint,
        bundle,
        fidelity_tokens=256,
        resume=True,
        progress=lambda done, total, what: written.append(what),
    )
    assert contents(bundle) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    if stops[-1] == "lm_head":
        assert not [name for name in written if name.startswith(("embed_tokens", "layers."))]


def test_experts_that_join_a_layer_later_survive_a_stop_in_between(tmp_path: Path) -> None:
    model = CASES["longcat_flash"].make(vocab_size=4096, num_layers=1)
    folder = save(model, tmp_path / "checkpoint")
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    options: dict[str, Any] = {"block_size": 32, "fidelity_tokens": 64}
    export_bundle(folder, tmp_path / "whole", **options)
    with pytest.raises(Stopped):
        export_bundle(folder, tmp_path / "b", **options, progress=stop_at("layers.1."), resume=True)
    export_bundle(folder, tmp_path / "b", **options, resume=True)
    assert contents(tmp_path / "b") == contents(tmp_path / "whole")


def test_other_options_do_not_continue_an_export(checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b"
    with pytest.raises(Stopped):
        export_bundle(checkpoint, bundle, fidelity=False, resume=True, progress=stop_at("layers.1"))
    work = tmp_path / ".b.exporting"
    assert (work / JOURNAL_FILE).is_file()
    with pytest.raises(ExportError, match="another checkpoint or other options"):
        export_bundle(checkpoint, bundle, fidelity=False, resume=True, block_size=16)
    weights = work / WEIGHTS_FILE
    damaged = bytearray(weights.read_bytes())
    damaged[0] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(ExportError, match="not what the journal was written for; export without"):
        export_bundle(checkpoint, bundle, fidelity=False, resume=True)
    weights.write_bytes(b"")
    with pytest.raises(ExportError, match="before the journal says; export without --resume"):
        export_bundle(checkpoint, bundle, fidelity=False, resume=True)
    (work / JOURNAL_FILE).write_bytes(b"damaged")
    with pytest.raises(ExportError, match="cannot be read"):
        export_bundle(checkpoint, bundle, fidelity=False, resume=True)


def test_without_resume_nothing_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        export_bundle(checkpoint, tmp_path / "b", fidelity=False, progress=stop_at("layers.1"))
    assert list(tmp_path.iterdir()) == []
