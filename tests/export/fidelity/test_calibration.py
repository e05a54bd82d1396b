"""Rounding 4-bit weights for the sake of a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.export.oracle import make_v3, save

from shoal.export.fidelity.calibration import round_with_inputs
from shoal.export.fidelity.text import fidelity_windows
from shoal.export.pipeline import export_bundle
from shoal.export.tokenizer.files import read_tokenizer
from shoal.graphs.contract import WEIGHTS_FILE
from shoal.graphs.errors import ExportError, ShoalError
from shoal.graphs.manifest_reader import read_manifest
from shoal.graphs.quantize import dequantize_blocks, quantize_nibbles, unpack_nibbles

TINY = Path(__file__).parents[3] / "checkpoints" / "tiny-v3"
TEXT = (Path(__file__).parents[3] / "docs" / "accuracy.md").read_text(encoding="utf-8")
BLOCK = 32


def values(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return dequantize_blocks(unpack_nibbles(packed), scales)


def example(n: int, k: int, tokens: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """A matrix, and inputs that go together and are of different size."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(k, k)) * rng.lognormal(size=k)
    inputs = rng.normal(size=(tokens, k // 4)) @ mix[: k // 4] + rng.normal(size=(tokens, k))
    return rng.normal(size=(n, k)).astype(np.float32), torch.from_numpy(inputs).float()


def by_definition(weight: np.ndarray, inputs: torch.Tensor, scales: np.ndarray) -> np.ndarray:
    """Column by column: round, then give the others what is best for X w (damped), in float64."""
    x = inputs.double().numpy()
    moments = x.T @ x
    moments += 0.03 * np.trace(moments) / len(moments) * np.eye(len(moments))
    rest, found = weight.astype(np.float64), np.empty(weight.shape)
    for i in range(weight.shape[1]):
        step = 16 * scales[:, i // BLOCK]
        found[:, i] = np.clip(np.rint(rest[:, i] / step), -8, 7) * step
        lost = rest[:, i] - found[:, i]
        answer = np.linalg.solve(moments[i + 1 :, i + 1 :], moments[i + 1 :, i])
        rest[:, i + 1 :] += lost[:, None] * answer
    return found


@pytest.mark.parametrize("seed", range(3))
def test_rest_of_a_row_makes_up_for_what_a_column_loses(seed: int) -> None:
    weight, inputs = example(16, 96, 200, seed)
    packed, scales = round_with_inputs(weight, inputs, BLOCK)
    expected = by_definition(weight, inputs, scales)
    same = np.isclose(values(packed, scales), expected, rtol=1e-5, atol=1e-6)
    assert same.all(axis=1).mean() >= 0.9  # a tie decided otherwise changes the rest of its row


@pytest.mark.parametrize("tokens", [1, 20, 1000])
@pytest.mark.parametrize("k", [64, 320])
def test_outputs_come_closer_than_by_plain_rounding(k: int, tokens: int) -> None:
    weight, inputs = example(64, k, tokens, seed=k)
    plain, better = (
        np.square(inputs.numpy() @ (values(*found) - weight).T).mean()
        for found in (quantize_nibbles(weight, BLOCK), round_with_inputs(weight, inputs, BLOCK))
    )
    assert better < 0.7 * plain


def test_an_expert_that_no_token_reaches_is_rounded_plainly() -> None:
    weight, inputs = example(8, 64, 10, seed=1)
    for found, expected in zip(
        round_with_inputs(weight, inputs[:0], BLOCK), quantize_nibbles(weight, BLOCK), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"\xff\xfe\x00", {}, "cannot be read as UTF-8"),
        (b"", {}, "0 tokens are too few"),
        (b"Too short a text.", {}, "expected a window of 512 tokens"),
        (TEXT.encode(), {"calibrate_tokens": 100}, "found 100 tokens"),
        (TEXT.encode(), {"weights": "int8"}, "expected a recipe with 4-bit weights, found int8"),
        (TEXT.encode(), {"weights": "fp32"}, "expected a recipe with 4-bit weights, found fp32"),
        (TEXT.encode(), {"fidelity": False}, "drop --no-fidelity"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused(
    tmp_path: Path, content: bytes, options: dict[str, object], message: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    with pytest.raises(ShoalError, match=message):
        export_bundle(
            TINY,
            tmp_path / "b",
            calibrate=text,
            **{"weights": "int4-experts", **options},  # type: ignore[arg-type]
        )
    assert not (tmp_path / "b").exists()


def test_a_byte_order_mark_is_no_part_of_a_text_to_measure_on(tmp_path: Path) -> None:
    tokenizer = read_tokenizer((TINY / "tokenizer.json").read_bytes(), TINY / "tokenizer.json")
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_bytes(TEXT.encode())
    marked.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    (_, expected), (_, found) = (fidelity_windows(tokenizer, text, 100) for text in (plain, marked))
    assert found.tolist() == expected.tolist()


def test_a_calibrated_export_is_repeated_and_continued_to_the_byte(tmp_path: Path) -> None:
    sizes = {"vocab_size": 4096, "hidden_size": 64, "q_lora_rank": 32, "kv_lora_rank": 32}
    sizes |= {"qk_nope_head_dim": 16, "v_head_dim": 16, "moe_intermediate_size": 32}
    checkpoint = save(make_v3(**sizes, intermediate_size=32), tmp_path / "c")
    (checkpoint / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")

    def export(name: str, **options: object) -> bytes:
        options = {"weights": "int4-experts", "fidelity_tokens": 64, **options}
        export_bundle(checkpoint, tmp_path / name, **options)  # type: ignore[arg-type]
        return (tmp_path / name / WEIGHTS_FILE).read_bytes()

    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("layers.2"):
            raise ExportError("stopped")

    whole = export("whole", calibrate=text)
    assert whole != export("plain")
    with pytest.raises(ExportError, match="stopped"):
        export("parts", calibrate=text, resume=True, progress=stop)
    with pytest.raises(ExportError, match="other options"):
        export("parts", resume=True)
    assert export("parts", calibrate=text, resume=True) == whole
    manifest = read_manifest((tmp_path / "whole" / "manifest.json").read_text(), where="m")
    assert manifest.fidelity is not None
    tokens = manifest.fidelity["calibration"].pop("tokens")
    assert manifest.fidelity["calibration"] == {"text": "text.txt"}
    assert 0 < tokens <= 8192
