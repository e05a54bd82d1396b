"""One row for each model family: how transformers makes a small one, and the published config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers
from tests.export.oracle import randomize

SIZES = {
    "vocab_size": 112,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
}
SIGMOID = {**SIZES, **EXPERTS, "n_group": 4, "topk_group": 2}
ONE_GROUP = {**SIGMOID, "n_group": 1, "topk_group": 1}
FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}
FP8 |= {"weight_block_size": [128, 128]}  # type: ignore[dict-item]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A family.

    Attributes:
        classes: Of transformers, without ``Config`` and ``ForCausalLM``.
        small: Arguments of a small model's config.
        published: Keys and values of the config.json that the authors publish, as far as they
            differ from the shared ones of ``PUBLISHED``.
        model_type: In the config.json, when it is not the one that transformers writes.
        published_layers: How many layers it has, and how many with experts, when that is not
            num_hidden_layers without first_k_dense_replace.
    """

    classes: str
    small: Mapping[str, Any]
    published: Mapping[str, Any] = field(default_factory=dict)
    model_type: str | None = None
    published_layers: tuple[int, int] | None = None

    def make(self, **overrides: Any) -> Any:
        """A random model of transformers."""
        config = getattr(transformers, f"{self.classes}Config")(**{**self.small, **overrides})
        config._attn_implementation = "eager"
        return randomize(getattr(transformers, f"{self.classes}ForCausalLM")(config), gain=1.0)


def yarn(factor: float, **values: Any) -> dict[str, Any]:
    """A published rope_scaling."""
    ends = {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
    original = {"original_max_position_embeddings": 4096}
    return {"type": "yarn", "factor": factor} | ends | original | values


PUBLISHED: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": True,
}
DEEPSEEK = {
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "kv_lora_rank": 512,
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "pretraining_tp": 1,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
}
V2 = DEEPSEEK | {
    "model_type": "deepseek_v2",
    "architectures": ["DeepseekV2ForCausalLM"],
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "rope_theta": 10000,
    "max_position_embeddings": 163840,
    "vocab_size": 102400,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
}
V3 = DEEPSEEK | {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "q_lora_rank": 1536,
}
LONG = [1.0, 1.1, 1.3, 1.6, 2.0, 2.6, 3.5, 5.0, 7.1, 9.6, 12.8, 16.7, 21.1, 25.8, 30.5, 34.8]

CASES: dict[str, Case] = {
    "deepseek_v2_lite": Case(
        classes="DeepseekV2",
        small=SIZES | EXPERTS | {"topk_method": "greedy", "q_lora_rank": None, "n_group": None},
        published=V2
        | {
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "n_group": 1,
            "n_routed_experts": 64,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "rope_scaling": yarn(40, mscale=0.707, mscale_all_dim=0.707),
            "routed_scaling_factor": 1.0,
            "topk_group": 1,
            "topk_method": "greedy",
        },
    ),
    "deepseek_v2": Case(
        classes="DeepseekV2",
        small=SIGMOID | {"topk_method": "group_limited_greedy", "first_k_dense_replace": 1},
        published=V2
        | {
            "hidden_size": 5120,
            "intermediate_size": 12288,
            "moe_intermediate_size": 1536,
            "n_group": 8,
            "n_routed_experts": 160,
            "num_attention_heads": 128,
            "num_hidden_layers": 60,
            "num_key_value_heads": 128,
            "q_lora_rank": 1536,
            "rope_scaling": yarn(40, mscale=0.707, mscale_all_dim=0.707),
            "routed_scaling_factor": 16.0,
            "topk_group": 3,
            "topk_method": "group_limited_greedy",
        },
    ),
    "deepseek_v3": Case(
        classes="DeepseekV3",
        small=SIGMOID | {"first_k_dense_replace": 1, "num_mtp_layers": 0},
        published=V3
        | {
            "bos_token_id": 0,
            "eos_token_id": 1,
            "first_k_dense_replace": 3,
            "max_position_embeddings": 163840,
            "n_group": 8,
            "n_routed_experts": 256,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "num_nextn_predict_layers": 1,
            "quantization_config": FP8,
            "rope_scaling": yarn(40),
            "rope_theta": 10000,
            "routed_scaling_factor": 2.5,
            "topk_group": 4,
            "vocab_size": 129280,
        },
    ),
    "moonlight": Case(
        classes="DeepseekV3",
        small=ONE_GROUP | {"first_k_dense_replace": 1, "num_mtp_layers": 0, "q_lora_rank": None},
        published=V3
        | {
            "bos_token_id": 163584,
            "eos_token_id": 163585,
            "first_k_dense_replace": 1,
            "hidden_size": 2048,
            "intermediate_size": 11264,
            "max_position_embeddings": 8192,
            "moe_intermediate_size": 1408,
            "n_group": 1,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_attention_heads": 16,
            "num_experts_per_tok": 6,
            "num_hidden_layers": 27,
            "num_key_value_heads": 16,
            "num_nextn_predict_layers": 0,
            "q_lora_rank": None,
            "rms_norm_eps": 1e-5,
            "rope_scaling": None,
            "rope_theta": 50000.0,
            "routed_scaling_factor": 2.446,
            "topk_group": 1,
            "vocab_size": 163840,
        },
    ),
    "kimi_k2": Case(
        classes="DeepseekV3",
        model_type="kimi_k2",
        small=ONE_GROUP
        | {
            "first_k_dense_replace": 1,
            "num_mtp_layers": 0,
            "routed_scaling_factor": 2.827,
            "rope_parameters": {"rope_theta": 50000.0}
            | yarn(4, beta_fast=1, mscale=1.0)
            | {"rope_type": "yarn", "original_max_position_embeddings": 16},
        },
        published=V3
        | {
            "model_type": "kimi_k2",
            "bos_token_id": 163584,
            "eos_token_id": 163585,
            "first_k_dense_replace": 1,
            "max_position_embeddings": 131072,
            "n_group": 1,
            "n_routed_experts": 384,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "num_nextn_predict_layers": 0,
            "quantization_config": FP8,
            "rope_scaling": yarn(32, beta_fast=1.0, beta_slow=1.0),
            "rope_theta": 50000.0,
            "routed_scaling_factor": 2.827,
            "topk_group": 1,
            "vocab_size": 163840,
        },
    ),
    "glm4_moe_lite": Case(
        classes="Glm4MoeLite",
        small=ONE_GROUP | {"routed_scaling_factor": 1.8, "v_head_dim": 32},
        published={
            "model_type": "glm4_moe_lite",
            "architectures": ["Glm4MoeLiteForCausalLM"],
            "dtype": "bfloat16",
            "eos_token_id": [154820, 154827, 154829],
            "first_k_dense_replace": 1,
            "hidden_size": 2048,
            "intermediate_size": 10240,
            "kv_lora_rank": 512,
            "max_position_embeddings": 202752,
            "moe_intermediate_size": 1536,
            "n_group": 1,
            "n_routed_experts": 64,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_attention_heads": 20,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 47,
            "num_key_value_heads": 20,
            "num_nextn_predict_layers": 1,
            "pad_token_id": 154820,
            "partial_rotary_factor": 1.0,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 192,
            "qk_rope_head_dim": 64,
            "rms_norm_eps": 1e-5,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "routed_scaling_factor": 1.8,
            "tie_word_embeddings": False,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "v_head_dim": 256,
            "vocab_size": 154880,
        },
    ),
    "axk1": Case(
        classes="AXK1",
        small=SIGMOID | {"mlp_layer_types": ["dense", "sparse", "sparse"]},
        published=V3
        | {
            "model_type": "AXK1",
            "architectures": ["AXK1ForCausalLM"],
            "bos_token_id": 163691,
            "eos_token_id": 163691,
            "first_k_dense_replace": 1,
            "max_position_embeddings": 131072,
            "n_group": 8,
            "n_routed_experts": 192,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "rope_scaling": yarn(32),
            "rope_theta": 10000,
            "routed_scaling_factor": 2.5,
            "topk_group": 4,
            "vocab_size": 163840,
        },
    ),
    "longcat_flash": Case(
        classes="LongcatFlash",
        small={
            key: SIZES[key]
            for key in SIZES
            if key not in ("num_hidden_layers", "intermediate_size")
        }
        | {
            "head_dim": 8,
            "num_layers": 2,
            "ffn_hidden_size": 96,
            "expert_ffn_hidden_size": 32,
            "n_routed_experts": 8,
            "zero_expert_num": 4,
            "moe_topk": 3,
            "routed_scaling_factor": 3.0,
        },
        published={
            "model_type": "longcat_flash",
            "architectures": ["LongcatFlashForCausalLM"],
            "attention_method": "MLA",
            "auto_map": {"AutoConfig": "configuration_longcat_flash.LongcatFlashConfig"},
            "bos_token_id": 1,
            "eos_token_id": 2,
            "expert_ffn_hidden_size": 2048,
            "ffn_hidden_size": 12288,
            "hidden_size": 6144,
            "kv_lora_rank": 512,
            "max_position_embeddings": 131072,
            "mla_scale_kv_lora": True,
            "mla_scale_q_lora": True,
            "moe_topk": 12,
            "n_routed_experts": 512,
            "num_attention_heads": 64,
            "num_layers": 28,
            "q_lora_rank": 1536,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000000.0,
            "routed_scaling_factor": 6.0,
            "router_bias": False,
            "v_head_dim": 128,
            "vocab_size": 131072,
            "zero_expert_num": 256,
            "zero_expert_type": "identity",
        },
        published_layers=(56, 28),
    ),
    "youtu": Case(
        classes="Youtu",
        small=SIZES | {"tie_word_embeddings": True},
        published={
            "model_type": "youtu",
            "architectures": ["YoutuForCausalLM"],
            "bos_token_id": 128000,
            "embedding_initializer_range": 0.04,
            "eos_token_id": 128001,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "kv_lora_rank": 512,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 16,
            "num_hidden_layers": 32,
            "num_key_value_heads": 16,
            "q_lora_rank": 1536,
            "qk_head_dim": 192,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "rope_interleave": True,
            "rope_scaling": None,
            "rope_theta": 1600000,
            "tie_word_embeddings": True,
            "v_head_dim": 128,
            "vocab_size": 128256,
        },
    ),
    "minicpm3": Case(
        classes="MiniCPM3",
        small=SIZES
        | {
            "dim_model_base": 16,
            "scale_emb": 3,
            "scale_depth": 1.4,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.3, 1.5],
                "long_factor": [1.0, 2.0, 4.0, 8.0],
                "original_max_position_embeddings": 32,
            },
        },
        published={
            "model_type": "minicpm3",
            "architectures": ["MiniCPM3ForCausalLM"],
            "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPM3Config"},
            "bos_token_id": 1,
            "dim_model_base": 256,
            "eos_token_id": [2, 73440],
            "hidden_size": 2560,
            "intermediate_size": 6400,
            "kv_lora_rank": 256,
            "max_position_embeddings": 32768,
            "num_attention_heads": 40,
            "num_hidden_layers": 62,
            "num_key_value_heads": 40,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": LONG,
                "short_factor": LONG,
                "original_max_position_embeddings": 32768,
            },
            "scale_depth": 1.4,
            "scale_emb": 12,
            "vocab_size": 73448,
        },
    ),
}
