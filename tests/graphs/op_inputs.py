"""Inputs of the op tests, for those that compare with torch and for those that run without it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tests.graphs.one_op import Array
from tests.tolerances import ROUNDING_TIE

from shoal.graphs.cache_types import cache_block_size
from shoal.graphs.ops.linear import linear
from shoal.graphs.ops.sparse_experts import swiglu
from shoal.graphs.quantize import Floats, dequantize_blocks, quantize_blocks

SCALE = 0.17  # softmax_scale
E, K = 6, 3  # experts, and how many of them a token takes


def float_inputs(
    seed: int, t: int, s: int, *, h: int = 3, n: int = 12, r: int = 8, c: int = 32, v: int = 10
) -> dict[str, Array]:
    """Random inputs: t new tokens in a cache of s rows."""
    rng = np.random.default_rng(seed)
    shapes = {
        "q_nope": (1, t, h, n),
        "q_rope": (1, t, h, r),
        "latent": (1, t, c),
        "k_rope": (1, t, r),
        "cache": (1, s, c + r),
        "w_uk": (h, n, c),
        "w_uv": (h, v, c),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def with_cache(inputs: dict[str, Array], cache_type: str) -> dict[str, Array]:
    """The same with a cache of another type, which holds the rounded rows."""
    changed: dict[str, Array] = {}
    for name, value in inputs.items():
        if name != "cache" or cache_type == "float32":
            changed[name] = value
        elif cache_type == "float16":
            changed[name] = value.astype(np.float16)
        else:
            size = inputs["latent"].shape[-1]
            block = cache_block_size(size) or 0
            codes, scales = quantize_blocks(np.ascontiguousarray(value[..., :size]), block)
            ropes = value[..., size:].astype(np.float16)
            changed |= {"cache": codes, "cache_scales": scales, "cache_rope": ropes}
    return changed


def int8_inputs(inputs: dict[str, Array], block_size: int) -> dict[str, Array]:
    """The same with w_uk and w_uv quantized."""
    quantized: dict[str, Array] = {}
    for name, value in inputs.items():
        if name in ("w_uk", "w_uv"):
            quantized[name], quantized[f"{name}_scales"] = quantize_blocks(value, block_size)
        else:
            quantized[name] = value
    return quantized


def grid(rng: np.random.Generator, shape: tuple[int, ...], block_size: int) -> Floats:
    """Activations that lie on the int8 grid, so that every form gives them the same codes."""
    signed = rng.integers(-127, 128, shape)
    signed[..., ::block_size] = 127
    return signed.astype(np.float32) * np.float32(1 / 64)


def choose(
    rng: np.random.Generator, lead: tuple[int, ...], num_experts: int = E, num_chosen: int = K
) -> dict[str, Array]:
    """Distinct random experts for each token, with weights."""
    ids = np.argsort(rng.random((*lead, num_experts)), axis=-1)[..., :num_chosen]
    return {"expert_ids": ids, "expert_weights": rng.random(ids.shape, np.float32)}


def tie_bound(
    x: Floats,
    expert_ids: NDArray[np.int64],
    expert_weights: Floats,
    gate_up: Array,
    gate_up_scales: Floats,
    down: Array,
    down_scales: Floats,
) -> Floats:
    """What it may cost that hidden values close to a rounding tie are rounded the other way."""
    block_size = gate_up.shape[-1] // gate_up_scales.shape[-1]
    bound = np.zeros_like(x)
    for token in np.ndindex(expert_ids.shape[:-1]):
        for e, weight in zip(expert_ids[token], expert_weights[token], strict=True):
            if e == len(gate_up):
                continue
            blocks = gate_up[e].reshape(*gate_up_scales[e].shape, -1)
            hidden = swiglu(linear(x[token], blocks, gate_up_scales[e])).reshape(-1, block_size)
            step = np.abs(hidden).max(axis=-1, keepdims=True) / 127
            position = hidden / step
            is_tie = np.abs(position - np.floor(position) - 0.5) < ROUNDING_TIE
            flips = np.where(is_tie, step, 0).reshape(-1)
            bound[token] += weight * np.abs(dequantize_blocks(down[e], down_scales[e])) @ flips
    return bound


def with_no_expert(
    rng: np.random.Generator, chosen: dict[str, Array], share: float
) -> dict[str, Array]:
    """Some of the chosen experts become the id that is no expert."""
    ids = chosen["expert_ids"]
    return chosen | {"expert_ids": np.where(rng.random(ids.shape) < share, E, ids)}
