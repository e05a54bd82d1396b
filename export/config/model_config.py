"""What a checkpoint's config.json says about the model, checked before anything else is read.

Fields keep the Hugging Face spelling. A key that is absent takes the value that transformers gives
it for the same ``model_type``. A key that could change the model's numbers and is not understood is
refused by name: a wrong model that runs is worse than an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.export.config.reader import read_fields
from shoal.export.config.rope_scaling import LongRopeScaling, YarnScaling
from shoal.graphs.errors import ConfigError
from shoal.graphs.input_files import read_json
from shoal.graphs.message_parts import listed

CONFIG_FILE = "config.json"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of a DeepSeek-type model. Sizes are counts of values, not bytes.

    Raises:
        ConfigError: A value is out of range or contradicts another one; all of them are named.
    """

    where: str = CONFIG_FILE  # file the values come from, for messages
    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int | None  # None: queries are projected in one step
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    attention_bias: bool
    intermediate_size: int  # width of a dense layer
    moe_intermediate_size: int  # width of one expert
    n_routed_experts: int  # 0: every layer is dense
    n_shared_experts: int
    num_experts_per_tok: int
    first_k_dense_replace: int  # dense layers at the start
    moe_layer_freq: int  # every how many layers a layer has experts
    n_group: int
    topk_group: int
    topk_method: str
    scoring_func: str
    norm_topk_prob: bool
    routed_scaling_factor: float
    rms_norm_eps: float
    rope_theta: float
    rope_interleave: bool  # pairs (0,1),(2,3),...; otherwise (0,R/2),(1,R/2+1),...
    rope_scaling: YarnScaling | LongRopeScaling | None
    tie_word_embeddings: bool
    max_position_embeddings: int
    num_nextn_predict_layers: int  # multi-token-prediction modules that the config announces
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    fp8_block: tuple[int, int]  # rows and columns of an FP8 matrix that share a scale
    mlp_layer_types: tuple[str, ...] | None = None  # "dense" or "sparse"; overrides the two counts
    has_moe_output_norm: bool = False  # norm of what a layer's experts put out together
    router_bias_is_optional: bool = False  # a checkpoint without it means zeros
    embedding_scale: float = 1.0  # embeddings, each layer's two contributions and the logits are
    residual_scale: float = 1.0  # multiplied by these, which layer_sources.py does to the weights
    logits_scale: float = 1.0
    query_latent_scale: float = 1.0  # and so are the two latents of attention, after their norms
    latent_scale: float = 1.0
    num_zero_experts: int = 0  # ids after the routed experts' that stand for doing nothing
    wiring: str = "sequential"  # how layers are made of blocks: a file of export/model/wirings

    def __post_init__(self) -> None:
        problems = _range_problems(vars(self))
        if problems:
            raise ConfigError(_message(self.where, problems))

    @property
    def qk_head_dim(self) -> int:
        """Size of one query head: the part without and the part with rotation."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_row_size(self) -> int:
        """Values that one token leaves in one layer's cache: the latent and the rope key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """What the attention scores are multiplied by before the softmax."""
        scaling = self.rope_scaling.softmax_factor if self.rope_scaling else 1.0
        return float(self.qk_head_dim**-0.5 * scaling)

    @property
    def is_moe(self) -> bool:
        """Whether the model has routed experts at all."""
        return self.n_routed_experts > 0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers with routed experts."""
        return tuple(layer for layer in range(self.num_hidden_layers) if self.is_moe_layer(layer))

    def is_moe_layer(self, layer: int) -> bool:
        """Whether ``layer`` has routed experts."""
        if self.mlp_layer_types is not None:
            return self.is_moe and self.mlp_layer_types[layer] == "sparse"
        in_turn = layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0
        return self.is_moe and in_turn

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], where: str = CONFIG_FILE) -> ModelConfig:
        """The config of a parsed config.json.

        Args:
            raw: The JSON object.
            where: Name of the file, for messages.

        Raises:
            ConfigError: The architecture is not supported, or keys are unknown, of a wrong type or
                out of range; every problem is named in one message.
        """
        values, problems = read_fields(raw, where)
        problems += _range_problems(values)
        if problems:
            raise ConfigError(_message(where, problems))
        return cls(where=where, **values)


def load_config(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """config.json of the checkpoint in ``folder``, as it is and as understood.

    Raises:
        ConfigError: config.json is missing, is not a JSON object, or asks for something that is not
            supported.
    """
    path = Path(folder) / CONFIG_FILE
    raw = _read_object(path)
    return raw, ModelConfig.from_hf(raw, where=str(path))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        raw = read_json(path)
    except FileNotFoundError as exc:
        raise ConfigError(
            f"{path}: no such file; give the folder that holds config.json and *.safetensors"
        ) from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}; check the path") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: expected JSON, found: {exc}; download it again") from exc
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: expected a JSON object, found {type(raw).__name__}; download it again"
        )
    return raw


def _message(where: str, problems: list[str]) -> str:
    return f"{where}: {listed(problems)}"


def _range_problems(values: Mapping[str, Any]) -> list[str]:
    """What is out of range or contradictory in ``values``, which has the fields of ModelConfig."""
    problems = [
        f"{key}: expected at least {least}, found {values[key]}"
        for key, least in _LEAST.items()
        if values[key] is not None and values[key] < least
    ]
    problems += [
        f"{key}: expected at most {most}, found {values[key]}"
        for key, most in _MOST.items()
        if values[key] is not None and values[key] > most
    ]
    problems += [
        f"{key}: expected a finite number above {bound}, found {values[key]}"
        for key, bound in {"rms_norm_eps": 0, "routed_scaling_factor": 0, "rope_theta": 1}.items()
        if not (math.isfinite(values[key]) and values[key] > bound)
    ]
    if values["qk_rope_head_dim"] % 2:
        problems.append(
            f"qk_rope_head_dim: expected an even number, found {values['qk_rope_head_dim']}"
        )
    # The rules below divide: they make sense only for sizes in range.
    if not problems and values["n_routed_experts"]:
        problems += _routing_problems(values)
        experts = values["num_hidden_layers"] * values["n_routed_experts"]
        if experts > _MOST_EXPERTS:
            problems.append(
                f"num_hidden_layers times n_routed_experts: expected at most {_MOST_EXPERTS}, "
                f"found {experts}"
            )
    return problems


_LEAST = {
    "vocab_size": 1,
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "q_lora_rank": 1,
    "kv_lora_rank": 1,
    "qk_nope_head_dim": 1,
    "qk_rope_head_dim": 2,
    "v_head_dim": 1,
    "intermediate_size": 1,
    "moe_intermediate_size": 1,
    "n_routed_experts": 0,
    "n_shared_experts": 0,
    "num_experts_per_tok": 0,
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 1,
    "num_nextn_predict_layers": 0,
    "bos_token_id": 0,
}

# Tensor names are listed before they are looked up: a slip in these must not fill the memory.
_MOST_EXPERTS = 1 << 17  # of all layers; of the models published so far, the largest has 28672
_MOST = {
    "num_hidden_layers": 1024,
    "n_routed_experts": 1024,
    "n_shared_experts": 1024,
    "num_nextn_predict_layers": 16,
    "vocab_size": 1 << 24,
    # The product of any three is the size of a tensor, in 64 bits.
    **dict.fromkeys(
        (
            "hidden_size",
            "num_attention_heads",
            "q_lora_rank",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
            "intermediate_size",
            "moe_intermediate_size",
        ),
        1 << 18,
    ),
}


def _routing_problems(values: Mapping[str, Any]) -> list[str]:
    experts, chosen = values["n_routed_experts"], values["num_experts_per_tok"]
    groups, kept = values["n_group"], values["topk_group"]
    if not 1 <= chosen <= experts:
        return [f"num_experts_per_tok: expected 1 to n_routed_experts {experts}, found {chosen}"]
    if values["topk_method"] == "greedy":
        return []
    if experts % groups:
        return [f"n_group: expected a divisor of n_routed_experts {experts}, found {groups}"]
    if kept > groups:
        return [f"topk_group: expected at most n_group {groups}, found {kept}"]
    size = experts // groups
    if kept < groups and size < 2 and values["topk_method"] == "noaux_tc":
        return [f"n_group: expected groups of two or more experts, found {groups} of {size}"]
    if chosen > kept * size:
        return [
            f"num_experts_per_tok: expected at most the {kept * size} experts of the {kept} "
            f"groups that are kept, found {chosen}"
        ]
    return []
