"""FP8 checkpoints: values, and every way in which scales can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.export.oracle import make_v3, save
from torch import Tensor

from shoal.export.checkpoint.fp8 import apply_scales, scale_shape
from shoal.export.checkpoint.safetensors_files import SafetensorsFiles
from shoal.export.checkpoint.tensor_names import parameter_sources
from shoal.export.checkpoint.weight_files import SINGLE_FILE
from shoal.export.config.model_config import load_config
from shoal.export.model.load import load_model
from shoal.export.pipeline import export_bundle
from shoal.graphs.contract import WEIGHTS_FILE
from shoal.graphs.errors import CheckpointError

BLOCK = [16, 32]  # smaller than the published 128 x 128, as the test model is
O_PROJ = "model.layers.1.self_attn.o_proj.weight"
Edit = Callable[[dict[str, Tensor]], None]


def quantized(weight: Tensor, block: list[int]) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn values and scales, by plain loops."""
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(scale_shape(tuple(weight.shape), (block[0], block[1])))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            rows = slice(i * block[0], (i + 1) * block[0])
            columns = slice(j * block[1], (j + 1) * block[1])
            part = weight[rows, columns]
            scales[i, j] = part.abs().max() / 448
            values[rows, columns] = (part / scales[i, j]).to(torch.float8_e4m3fn)
    return values, scales


def dequantized(values: Tensor, scales: Tensor, block: list[int]) -> Tensor:
    grown = np.kron(scales.numpy(), np.ones(block, np.float32))
    return values.float() * torch.from_numpy(grown[: values.shape[0], : values.shape[1]])


def is_quantized(name: str, tensor: Tensor) -> bool:
    """DeepSeek-V3 keeps embedding, head, norms and router in bfloat16."""
    return tensor.dim() == 2 and "layers" in name and not name.endswith("mlp.gate.weight")


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same model twice: as FP8 with scales, and as the float32 values they stand for."""
    fp8, plain = (tmp_path_factory.mktemp(name) for name in ("fp8", "plain"))
    for folder in (fp8, plain):
        save(make_v3(), folder)
    tensors = load_file(fp8 / SINGLE_FILE)
    stored: dict[str, Tensor] = {}
    for name in list(tensors):
        stored[name] = tensors[name]
        if is_quantized(name, tensors[name]):
            stored[name], scales = quantized(tensors[name], BLOCK)
            stored[f"{name}_scale_inv"] = scales
            tensors[name] = dequantized(stored[name], scales, BLOCK)
    save_file(stored, fp8 / SINGLE_FILE)
    save_file(tensors, plain / SINGLE_FILE)
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    edit_config(fp8, quantization_config=quantization | {"weight_block_size": BLOCK})
    return fp8, plain


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_fp8_checkpoint_loads_as_the_values_it_stands_for(twins: tuple[Path, Path]) -> None:
    fp8, plain = (load_model(folder).state_dict() for folder in twins)
    assert fp8.keys() == plain.keys()
    for name in fp8:
        assert torch.equal(fp8[name], plain[name]), name


def test_an_fp8_checkpoint_gives_the_bundle_of_its_values(
    twins: tuple[Path, Path], tmp_path: Path
) -> None:
    weights = []
    for name, folder in zip(("fp8", "plain"), twins, strict=True):
        export_bundle(folder, tmp_path / name, weights="fp32", fidelity=False)
        weights.append((tmp_path / name / WEIGHTS_FILE).read_bytes())
    assert weights[0] == weights[1]


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data(), rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_any_rows_of_ragged_blocks_are_scaled_as_in_the_whole(
    data: st.DataObject, rows: int, columns: int
) -> None:
    block = (data.draw(st.integers(1, 16)), data.draw(st.integers(1, 16)))
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    generator = torch.Generator().manual_seed(rows * 41 + columns)
    values = torch.randn(rows, columns, generator=generator)
    scales = torch.rand(scale_shape((rows, columns), block), generator=generator)
    expected = dequantized(values, scales, list(block))[start:stop]
    part = values[start:stop].clone()
    apply_scales(part, scales[start // block[0] :], block, start=start)
    assert torch.equal(part, expected)


def test_the_published_grid_of_128_is_the_default_and_may_be_ragged(tmp_path: Path) -> None:
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(3))
    values, scales = quantized(weight, [128, 128])
    assert scales.shape == (3, 2)
    save_file({"w": values, "w_scale_inv": scales}, tmp_path / SINGLE_FILE)
    opened = SafetensorsFiles.open(tmp_path)
    expected = dequantized(values, scales, [128, 128])
    assert torch.equal(opened.read("w"), expected)
    assert torch.equal(opened.read_rows("w", 100, 290), expected[100:290])
    assert (expected - weight).abs().max() < 0.07 * weight.abs().max()


def test_stacks_of_matrices_have_stacks_of_scales(tmp_path: Path) -> None:
    weight = torch.randn(3, 20, 40, generator=torch.Generator().manual_seed(3))
    parts = [quantized(matrix, BLOCK) for matrix in weight]
    values, scales = (torch.stack(kind) for kind in zip(*parts, strict=True))
    save_file({"w": values, "w_scale_inv": scales}, tmp_path / SINGLE_FILE)
    expected = torch.stack([dequantized(v, s, BLOCK) for v, s in parts])
    assert torch.equal(
        SafetensorsFiles.open(tmp_path, (16, 32)).read_rows("w", 1, 3), expected[1:3]
    )


def drop_scales(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{O_PROJ}_scale_inv"]


def transpose_scales(tensors: dict[str, Tensor]) -> None:
    name = f"{O_PROJ}_scale_inv"
    tensors[name] = tensors[name].T.contiguous()


def whole_scales(tensors: dict[str, Tensor]) -> None:
    tensors[f"{O_PROJ}_scale_inv"] = tensors[f"{O_PROJ}_scale_inv"].to(torch.int32)


def fp8_norm(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)


def left_over_scales(tensors: dict[str, Tensor]) -> None:
    tensors[O_PROJ] = tensors[O_PROJ].float()


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (drop_scales, f"{O_PROJ}: FP8 without scales, {O_PROJ}_scale_inv is missing"),
        (transpose_scales, f"{O_PROJ}_scale_inv: expected shape [3, 2], one scale for each block"),
        (whole_scales, f"{O_PROJ}_scale_inv: expected F32, BF16, F16, found I32"),
        (fp8_norm, "model.norm.weight: expected a matrix, found FP8 values of shape [48]"),
        (left_over_scales, f"unexpected {O_PROJ}_scale_inv [3, 2]"),
    ],
)
def test_scales_that_do_not_fit_are_refused_by_name(
    twins: tuple[Path, Path], tmp_path: Path, edit: Edit, expected: str
) -> None:
    tensors = load_file(twins[0] / SINGLE_FILE)
    edit(tensors)
    save_file(tensors, tmp_path / SINGLE_FILE)
    _, config = load_config(twins[0])
    opened = SafetensorsFiles.open(tmp_path, config.fp8_block)
    with pytest.raises(CheckpointError) as caught:
        parameter_sources(config, opened)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scales_that_are_not_finite_are_named(tmp_path: Path) -> None:
    values, scales = quantized(torch.ones(20, 40), BLOCK)
    scales[1, 0] = float("nan")
    save_file({"w": values, "w_scale_inv": scales}, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match="w_scale_inv: expected finite values"):
        SafetensorsFiles.open(tmp_path, (16, 32)).read("w")
