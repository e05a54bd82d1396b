"""The valid examples: a small model with random weights, its checkpoint and its bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tests.conftest import TINY_CHECKPOINT
from tests.fuzz.fuzz_format import Samples

from shoal.export.checkpoint.layer_sources import model_sources
from shoal.export.config.model_config import ModelConfig
from shoal.export.pipeline import export_bundle

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "max_position_embeddings": 256,
}
_BLOCK_SIZE = 16
_NUM_MERGES = 60
_COPIED = ("tokenizer_config.json", "generation_config.json")


def make_samples(build: Path) -> Samples:
    """Make the examples in a folder, if they are not there yet."""
    samples = Samples(build / "checkpoint", build / "bundle", build / "work")
    if not samples.bundle.exists():
        samples.work.mkdir(parents=True, exist_ok=True)
        _write_checkpoint(samples.checkpoint)
        export_bundle(
            samples.checkpoint,
            samples.bundle,
            weights="int8",
            block_size=_BLOCK_SIZE,
            fidelity=False,
        )
    return samples


def _write_checkpoint(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    tokenizer = _small_tokenizer()
    config = json.loads((TINY_CHECKPOINT / "config.json").read_bytes()) | _SIZES
    config["vocab_size"] = len(tokenizer["model"]["vocab"])
    for name, content in (("config.json", config), ("tokenizer.json", tokenizer)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    for name in _COPIED:
        (folder / name).write_bytes((TINY_CHECKPOINT / name).read_bytes())
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0, 0.1, shape).astype(np.float32)
        for source in model_sources(ModelConfig.from_hf(config), {}, 1)
        for name, shape in source.tensors.items()
    }
    save_file(weights, folder / "model.safetensors")


def _small_tokenizer() -> dict[str, Any]:
    """The tokenizer of tiny-v3 with its first merges only."""
    content: dict[str, Any] = json.loads((TINY_CHECKPOINT / "tokenizer.json").read_bytes())
    model, added = content["model"], [token["content"] for token in content["added_tokens"]]
    merges = [m if isinstance(m, list) else m.split(" ") for m in model["merges"][:_NUM_MERGES]]
    plain = [token for token in model["vocab"] if len(token) == 1]
    tokens = dict.fromkeys([*added, *plain, *("".join(merge) for merge in merges)])
    model["vocab"] = {token: number for number, token in enumerate(tokens)}
    model["merges"] = merges
    return content
