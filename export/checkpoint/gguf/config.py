"""From the metadata of a GGUF file to the config.json that the model was published with.

What DeepSeek-V2 and V3 share with all models of the architecture deepseek2 is enough to run it: the
router's scores say which of the two it is. Values that a file does not hold are those that
llama.cpp assumes.

Source: llama.cpp, src/models/deepseek2.cpp and conversion/deepseek.py @ b9000.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shoal.export.checkpoint.gguf.file import GgufModel
from shoal.graphs.errors import ConfigError
from shoal.graphs.message_parts import listed, shortened

ARCHITECTURE = "deepseek2"
_SIGMOID = 2
_UNUSED = (
    "attention.head_count_kv attention.key_length attention.value_length rope.scaling.finetuned "
    "vocab_size nextn_predict_layers"
)
"""Keys that say nothing more, or what is not exported."""

_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "kv_lora_rank": "attention.kv_lora_rank",
    "qk_rope_head_dim": "rope.dimension_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
    "q_lora_rank": ("attention.q_lora_rank", 0),
    "moe_intermediate_size": ("expert_feed_forward_length", 1),
    "n_routed_experts": ("expert_count", 0),
    "n_shared_experts": ("expert_shared_count", 0),
    "num_experts_per_tok": ("expert_used_count", 0),
    "first_k_dense_replace": ("leading_dense_block_count", 0),
    "norm_topk_prob": ("expert_weights_norm", False),
    "routed_scaling_factor": ("expert_weights_scale", 1.0),
    "rope_theta": ("rope.freq_base", 10000.0),
    "n_group": ("expert_group_count", 1),
    "topk_group": ("expert_group_used_count", 1),
}
_YARN = {
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}


def config_of(model: GgufModel) -> dict[str, Any]:
    """The content of a config.json for the model.

    Raises:
        ConfigError: another architecture, or keys that are missing or not understood.
    """
    keys = _Keys(model)
    config: dict[str, Any] = {name: keys.take(key) for name, key in _SIZES.items()}
    config |= {name: keys.take(key, default) for name, (key, default) in _OPTIONAL.items()}
    config["q_lora_rank"] = config["q_lora_rank"] or None
    # Files from before the two keys of the multi-head form have its sizes under the plain ones.
    head = keys.take("attention.key_length_mla", keys.peek("attention.key_length"))
    value = keys.take("attention.value_length_mla", keys.peek("attention.value_length"))
    if isinstance(head, int) and isinstance(config["qk_rope_head_dim"], int):
        config["qk_nope_head_dim"] = head - config["qk_rope_head_dim"]
    config["v_head_dim"] = value
    config |= _routing(keys, model, config)
    config["rope_scaling"] = _rope_scaling(keys)
    config["num_nextn_predict_layers"] = 0  # llama.cpp leaves these modules out
    embedding = model.tensors.get("token_embd.weight")
    config["vocab_size"] = 0 if embedding is None else embedding.shape[0]
    config["tie_word_embeddings"] = "output.weight" not in model.tensors
    bos, *ends = (keys.token(token) for token in ("bos", "eos", "eot"))
    config["bos_token_id"] = bos
    config["eos_token_id"] = list(dict.fromkeys(end for end in ends if end is not None))
    keys.finish()
    return config


def _routing(keys: _Keys, model: GgufModel, config: Mapping[str, Any]) -> dict[str, Any]:
    biased = any(name.endswith("exp_probs_b.bias") for name in model.tensors)
    gating = keys.take("expert_gating_func", _SIGMOID if biased else 1)
    if gating == _SIGMOID or not config["n_routed_experts"]:
        return {"model_type": "deepseek_v3"}
    grouped = config["n_group"] not in (0, 1)
    method = "group_limited_greedy" if grouped else "greedy"
    return {"model_type": "deepseek_v2", "topk_method": method}


def _rope_scaling(keys: _Keys) -> dict[str, Any] | None:
    kind = keys.take("rope.scaling.type", "none")
    values = {name: keys.take(key, None) for name, key in _YARN.items()}
    log_multiplier = keys.number("rope.scaling.yarn_log_multiplier")
    if kind == "none":
        return None
    if log_multiplier is not None:  # of both scales, which llama.cpp takes to be equal
        scale = round(float(log_multiplier) * 10, 6)
        values |= {"mscale": scale, "mscale_all_dim": scale}
    return {"type": kind} | {name: value for name, value in values.items() if value is not None}


class _Keys:
    """Takes the architecture's keys, and remembers which are missing."""

    def __init__(self, model: GgufModel) -> None:
        found = model.metadata.get("general.architecture")
        if not isinstance(found, str) or found != ARCHITECTURE:
            raise ConfigError(
                f"{model.path}: general.architecture: expected {ARCHITECTURE!r}, found "
                f"{_shown(found)}; other architectures are not supported"
            )
        prefix = f"{ARCHITECTURE}."
        self._path, self._metadata = model.path, model.metadata
        self._problems: list[str] = []
        self._left = {
            key.removeprefix(prefix): _short(value)
            for key, value in model.metadata.items()
            if key.startswith(prefix)
        }
        for key, value in self._left.items():
            if _is_list(value) and key not in _UNUSED.split():
                self._problems.append(f"{prefix}{shortened(key)}: expected one value, found a list")
                self._left[key] = 1

    def peek(self, key: str) -> Any:
        """The value of ``key``, None if there is none."""
        return self._left.get(key)

    def take(self, key: str, *default: Any) -> Any:
        """The value of ``key``; a default makes it optional."""
        if key in self._left:
            return self._left.pop(key)
        if not default:
            self._problems.append(f"{ARCHITECTURE}.{key}: missing")
        return default[0] if default else 1

    def number(self, key: str) -> float | None:
        """The number under ``key``, None if there is none."""
        value = self.take(key, None)
        if value is None or isinstance(value, (int, float)):
            return value
        self._problems.append(f"{ARCHITECTURE}.{key}: expected a number, found {_shown(value)}")
        return None

    def token(self, name: str) -> int | None:
        """The id of a special token, None if there is none."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self._metadata.get(key)
        if value is None or type(value) is int:
            return value
        self._problems.append(f"{key}: expected a token id, found {_shown(value)}")
        return None

    def finish(self) -> None:
        """Raises ConfigError for keys that are missing or were not taken."""
        self._problems += [
            f"{ARCHITECTURE}.{shortened(key)}: unknown key, which may change the model's numbers"
            for key in sorted(self._left)
            if key not in _UNUSED.split()
        ]
        if self._problems:
            raise ConfigError(f"{self._path}: {listed(self._problems)}; it is not supported")


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, np.ndarray))


def _shown(value: Any) -> str:
    return "a list" if _is_list(value) else shortened(repr(value))


def _short(value: Any) -> Any:
    """A number as it was before it became a float32."""
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):  # what is infinite then is refused
        return float(str(np.float32(value)))
