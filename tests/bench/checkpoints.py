"""Checkpoints of random weights with the layer shapes of published models, for measuring speed.

What such a model writes is noise; its experts are chosen about evenly, as a trained model's are.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.export.checkpoint.tensor_names import wanted_tensors
from shoal.export.config.model_config import ModelConfig

TOKENIZER_FOLDER = Path(__file__).parents[2] / "checkpoints" / "tiny-v3"
_SLICE_VALUES = 1 << 24

_COMMON = {
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 163840,
    "moe_layer_freq": 1,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
    "first_k_dense_replace": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_scaling": None,
}
PRESETS: dict[str, dict[str, Any]] = {
    # DeepSeek-V2-Lite with 5 of its 27 layers and a smaller vocabulary: 2.55 B parameters.
    "lite-mini": _COMMON
    | {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "hidden_size": 2048,
        "num_hidden_layers": 5,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
    },
    # DeepSeek-V3's structure, made small: 0.49 B parameters.
    "v3-mini": _COMMON
    | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "hidden_size": 1024,
        "num_hidden_layers": 8,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": 768,
        "kv_lora_rank": 256,
        "intermediate_size": 2816,
        "moe_intermediate_size": 512,
        "n_routed_experts": 32,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
    },
}


def write_checkpoint(folder: Path, config: Mapping[str, Any], seed: int = 0) -> None:
    """Write a checkpoint folder with one shard of bfloat16 weights.

    Args:
        folder: is created; appears whole or not at all.
        config: config.json.
        seed: the same seed gives the same bytes.
    """
    making = folder.with_name(folder.name + ".new")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    (making / "config.json").write_text(json.dumps(dict(config), indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER_FOLDER / name, making / name)
    shapes = wanted_tensors(ModelConfig.from_hf(config))
    with (making / "model.safetensors").open("wb") as file:
        header = _header(shapes)
        file.write(struct.pack("<Q", len(header)) + header)
        for name, shape in shapes.items():
            for values in _values(name, shape, seed):
                file.write(_bfloat16(values).tobytes())
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    entries, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        entries[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)


def _values(name: str, shape: tuple[int, ...], seed: int) -> Iterator[NDArray[np.float32]]:
    """Norms are 1; in products the output varies as much as the input."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    left = math.prod(shape)
    while left:
        count = min(left, _SLICE_VALUES)
        if name.endswith("norm.weight"):
            yield np.ones(count, np.float32)
        else:
            scale = np.float32(1 / math.sqrt(shape[-1]))
            yield rng.standard_normal(count, np.float32) * scale
        left -= count


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of each float32: rounded towards zero, which does for random values."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)
