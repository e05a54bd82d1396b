"""Hugging Face checkpoints as GGUF files, written with llama.cpp's own package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from safetensors.torch import load_file

IN_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    **{f"mlp.{part}_proj.weight": f"ffn_{part}.weight" for part in ("gate", "up", "down")},
    **{
        f"mlp.shared_experts.{part}_proj.weight": f"ffn_{part}_shexp.weight"
        for part in ("gate", "up", "down")
    },
}
OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


TOKEN_TYPES = "tokenizer.ggml.token_type"


def metadata_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp's converter makes of a config.json, without the vocabulary."""
    rope, values = config.get("rope_scaling"), dict(config)
    found: dict[str, Any] = {
        "block_count": values["num_hidden_layers"],
        "context_length": values["max_position_embeddings"],
        "embedding_length": values["hidden_size"],
        "feed_forward_length": values["intermediate_size"],
        "attention.head_count": values["num_attention_heads"],
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": float(values["rms_norm_eps"]),
        "attention.kv_lora_rank": values["kv_lora_rank"],
        "attention.key_length": values["kv_lora_rank"] + values["qk_rope_head_dim"],
        "attention.value_length": values["kv_lora_rank"],
        "attention.key_length_mla": values["qk_nope_head_dim"] + values["qk_rope_head_dim"],
        "attention.value_length_mla": values["v_head_dim"],
        "attention.q_lora_rank": values["q_lora_rank"] or 0,
        "rope.dimension_count": values["qk_rope_head_dim"],
        "rope.freq_base": float(values["rope_theta"]),
        "vocab_size": values["vocab_size"],
        "leading_dense_block_count": values["first_k_dense_replace"],
        "expert_count": values["n_routed_experts"],
        "expert_shared_count": values["n_shared_experts"],
        "expert_used_count": values["num_experts_per_tok"],
        "expert_feed_forward_length": values["moe_intermediate_size"],
        "expert_group_count": values["n_group"],
        "expert_group_used_count": values["topk_group"],
        "expert_weights_scale": float(values["routed_scaling_factor"]),
        "expert_gating_func": {"softmax": 1, "sigmoid": 2}[values["scoring_func"]],
    }
    if values["norm_topk_prob"]:
        found["expert_weights_norm"] = True
    if rope:
        found |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
            "rope.scaling.yarn_beta_fast": float(rope["beta_fast"]),
            "rope.scaling.yarn_beta_slow": float(rope["beta_slow"]),
            "rope.scaling.yarn_log_multiplier": 0.1 * rope["mscale_all_dim"],
        }
    vocabulary = {f"tokenizer.ggml.{key}": values[key] for key in ("bos_token_id", "eos_token_id")}
    return (
        {"general.architecture": "deepseek2"}
        | vocabulary
        | {f"deepseek2.{key}": value for key, value in found.items()}
    )


def vocabulary_of(tokenizer: Mapping[str, Any], pre: str) -> dict[str, Any]:
    """The metadata of a tokenizer.json."""
    tokens = {token: id_ for token, id_ in tokenizer["model"]["vocab"].items()}
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    tokens |= {content: token["id"] for content, token in added.items()}
    ordered = sorted(tokens, key=tokens.__getitem__)
    kinds = [(3 if added[t]["special"] else 4) if t in added else 1 for t in ordered]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ordered,
        TOKEN_TYPES: kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": True,
    }


def vocabulary_as_read(tokenizer: Mapping[str, Any], pre: str) -> dict[str, Any]:
    """The same as it is when it was read from a file: numbers are an array."""
    found = vocabulary_of(tokenizer, pre)
    return found | {TOKEN_TYPES: np.array(found[TOKEN_TYPES], np.int32)}


def write_gguf(
    checkpoint: Path,
    path: Path,
    kind: GGMLQuantizationType,
    *,
    splits_kv_b: bool = True,
    tensors_per_file: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint folder to ``path``.

    Args:
        checkpoint: with a single model.safetensors, which has a tensor for each expert.
        path: of the file.
        kind: of all matrices but the router's.
        splits_kv_b: whether kv_b_proj is in two parts, as in newer files.
        tensors_per_file: when not 0, the files have names of their own.
        changes: to the metadata; None removes a key.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    metadata = metadata_of(config) | vocabulary_of(tokenizer, "deepseek-v3") | dict(changes or {})
    architecture = metadata.pop("general.architecture")
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_file)
    for key, value in metadata.items():
        if value is not None:
            add_value(writer, key, value)
    tensors = {n: t.float().numpy() for n, t in load_file(checkpoint / "model.safetensors").items()}
    for name, array in gguf_tensors(config, tensors, splits_kv_b):
        plain = array.ndim == 1 or name.endswith("ffn_gate_inp.weight")
        stored = GGMLQuantizationType.F32 if plain else kind
        writer.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add one value of metadata, of the type that llama.cpp gives it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def gguf_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]], splits_kv_b: bool
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names and values of the tensors of the file."""
    yield from ((ours, tensors[theirs]) for ours, theirs in OUTSIDE.items() if theirs in tensors)
    for layer in range(config["num_hidden_layers"]):
        theirs, ours = f"model.layers.{layer}.", f"blk.{layer}."
        for name, short in IN_LAYER.items():
            if theirs + name in tensors:
                yield ours + short, tensors[theirs + name]
        for part in ("gate", "up", "down"):
            names = [
                f"{theirs}mlp.experts.{expert}.{part}_proj.weight"
                for expert in range(config["n_routed_experts"])
            ]
            if names[0] in tensors:
                yield f"{ours}ffn_{part}_exps.weight", np.stack([tensors[n] for n in names])
        both = tensors[f"{theirs}self_attn.kv_b_proj.weight"]
        if not splits_kv_b:
            yield f"{ours}attn_kv_b.weight", both
            continue
        heads = both.reshape(config["num_attention_heads"], -1, both.shape[1])
        keys, values = np.split(heads, [config["qk_nope_head_dim"]], axis=1)
        yield f"{ours}attn_k_b.weight", np.ascontiguousarray(keys.transpose(0, 2, 1))
        yield f"{ours}attn_v_b.weight", np.ascontiguousarray(values)
