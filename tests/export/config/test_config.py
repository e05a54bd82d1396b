"""config.json: what is read, what is refused, and how."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from shoal.export.config.model_config import ModelConfig, load_config
from shoal.export.tokenizer.special_tokens import generation_config
from shoal.graphs.errors import ConfigError

TINY = Path(__file__).parents[3] / "checkpoints" / "tiny-v3"
V3 = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}
V2 = {"model_type": "deepseek_v2", "num_experts_per_tok": 6}
YARN_V3 = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def fp8(**changes: Any) -> dict[str, Any]:
    """The quantization_config of DeepSeek-V3, changed."""
    published = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}
    return {"quantization_config": published | {"weight_block_size": [128, 128]} | changes}


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_hf(raw)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_trained_checkpoint_is_read_as_it_stands() -> None:
    raw, config = load_config(TINY)
    assert raw["model_type"] == config.model_type == "deepseek_v3"
    assert config.qk_head_dim == 64
    assert config.cache_row_size == 160
    assert config.softmax_scale == 64**-0.5
    assert config.moe_layers == (1, 2, 3, 4)
    assert config.eos_token_ids == (1,)


def test_an_empty_v3_config_is_the_671b_model() -> None:
    config = ModelConfig.from_hf(V3)
    assert (config.hidden_size, config.n_routed_experts, config.n_group) == (7168, 256, 8)
    assert (config.scoring_func, config.topk_method) == ("sigmoid", "noaux_tc")
    assert config.moe_layers == tuple(range(3, 61))


def test_yarn_raises_the_softmax_scale_by_the_square_of_its_temperature() -> None:
    config = ModelConfig.from_hf({**V3, "rope_scaling": YARN_V3})
    temperature = 0.1 * math.log(40) + 1
    assert config.softmax_scale == pytest.approx(192**-0.5 * temperature**2)
    assert config.rope_scaling is not None
    assert config.rope_scaling.cos_sin_factor == 1.0


def test_old_and_new_spellings_of_rope_mean_the_same() -> None:
    old = ModelConfig.from_hf({**V3, "rope_theta": 50000.0, "rope_scaling": YARN_V3})
    new_rope = {"rope_type": "yarn", "rope_theta": 50000.0} | YARN_V3
    del new_rope["type"]
    assert ModelConfig.from_hf({**V3, "rope_parameters": new_rope}) == old


@pytest.mark.parametrize(
    ("alias", "key"),
    [("num_mtp_layers", "num_nextn_predict_layers"), ("num_local_experts", "n_routed_experts")],
)
def test_aliases_are_the_keys_they_stand_for(alias: str, key: str) -> None:
    assert ModelConfig.from_hf({**V3, alias: 16}) == ModelConfig.from_hf({**V3, key: 16})
    assert f"{alias}: expected the same as {key} (8), found 16" in refusal(
        {**V3, key: 8, alias: 16}
    )


def test_null_experts_make_a_dense_model() -> None:
    config = ModelConfig.from_hf({**V3, "n_routed_experts": None})
    assert config.moe_layers == ()
    assert not config.is_moe


def test_layers_between_those_with_experts_are_dense() -> None:
    config = ModelConfig.from_hf(
        {**V2, "num_hidden_layers": 7, "first_k_dense_replace": 1, "moe_layer_freq": 2}
    )
    assert config.moe_layers == (2, 4, 6)


@pytest.mark.parametrize(
    ("raw", "ids"), [([5, 6], (5, 6)), (7, (7,)), (None, ()), ([], ())], ids=str
)
def test_end_tokens_may_be_one_several_or_none(raw: Any, ids: tuple[int, ...]) -> None:
    assert ModelConfig.from_hf({**V3, "eos_token_id": raw}).eos_token_ids == ids


def test_keys_that_do_not_change_the_numbers_are_accepted() -> None:
    harmless = {
        "torch_dtype": "bfloat16",
        "auto_map": {"AutoConfig": "x.y"},
        "transformers_version": "4.33.1",
        "ep_size": 1,
        "use_cache": True,
        "aux_loss_alpha": 0.001,
        "quantization_config": None,
        "sliding_window": None,
    }
    assert ModelConfig.from_hf({**V3, **harmless}) == ModelConfig.from_hf(V3)


@pytest.mark.parametrize(
    ("family", "override", "expected"),
    [
        (V3, {"hidden_act": "gelu"}, "hidden_act: expected 'silu', found 'gelu'"),
        (V3, {"topk_method": "greedy"}, "topk_method: expected 'noaux_tc', found 'greedy'"),
        (V3, {"scoring_func": "softmax"}, "scoring_func: expected 'sigmoid'"),
        (V2, {"topk_method": "noaux_tc"}, "'greedy' or 'group_limited_greedy'"),
        (V2, {"norm_topk_prob": True}, "norm_topk_prob: expected False"),
        (V2, {"rope_interleave": False}, "rope_interleave: expected True"),
        (V2, {"mlp_bias": True}, "mlp_bias: expected False, found True"),
        (V2, {"num_experts_per_tok": None}, "num_experts_per_tok: expected 1 to"),
        (V3, fp8(quant_method="gptq"), "quantization_config.quant_method: expected 'fp8'"),
        (V3, fp8(fmt="e5m2"), "quantization_config.fmt: expected 'e4m3', found 'e5m2'"),
        (V3, fp8(weight_block_size=[128, 0]), "weight_block_size: expected two whole numbers"),
        (V3, fp8(weight_bits=4), "quantization_config.weight_bits: unknown key"),
        (V3, {"quantization_config": "fp8"}, "quantization_config: expected an object"),
        (V3, {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.rope_type: expected"),
        (V3, {"rope_scaling": YARN_V3 | {"stretch": 3}}, "rope_scaling.stretch: unknown key"),
        (V3, {"rope_scaling": YARN_V3 | {"factor": 0.5}}, "factor: expected a number of at least"),
        (V3, {"rope_scaling": "yarn"}, "rope_scaling: expected an object, found 'yarn'"),
        (V3, {"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.0"),
        (V3, {"qk_rope_head_dim": 63}, "qk_rope_head_dim: expected an even number, found 63"),
        (V3, {"hidden_size": -1}, "hidden_size: expected at least 1, found -1"),
        (V3, {"hidden_size": "7168"}, "hidden_size: expected a whole number, found '7168'"),
        (V3, {"hidden_size": 7168.0}, "hidden_size: expected a whole number, found 7168.0"),
        (V3, {"hidden_size": True}, "hidden_size: expected a whole number, found True"),
        (V3, {"hidden_size": None}, "hidden_size: expected a whole number, found None"),
        (V3, {"attention_bias": 1}, "attention_bias: expected true or false, found 1"),
        (V3, {"rms_norm_eps": float("nan")}, "rms_norm_eps: expected a finite number up to 1e"),
        (V3, {"rms_norm_eps": 0}, "rms_norm_eps: expected a finite number above 0, found 0.0"),
        (V3, {"rms_norm_eps": "1e-6"}, "rms_norm_eps: expected a number, found '1e-6'"),
        (V3, {"rope_theta": 1}, "rope_theta: expected a finite number above 1"),
        (V3, {"eos_token_id": [1, "x"]}, "eos_token_id: expected a token id or a list"),
        (V3, {"num_experts_per_tok": 257}, "expected 1 to n_routed_experts 256, found 257"),
        (V3, {"n_group": 7}, "n_group: expected a divisor of n_routed_experts 256, found 7"),
        (V3, {"topk_group": 9}, "topk_group: expected at most n_group 8, found 9"),
        (V3, {"n_group": 256, "topk_group": 8}, "groups of two or more experts"),
        (V3, {"num_experts_per_tok": 200}, "at most the 128 experts of the 4 groups"),
        (V3, {"num_key_value_heads": 8}, "num_key_value_heads: expected 128, found 8"),
        (V3, {"qk_head_dim": 64}, "qk_head_dim: expected 192, found 64"),
        (V3, {"index_topk": 2048}, "index_topk: unknown key, which may change"),
        (V3, {"architectures": ["DeepseekV32ForCausalLM"]}, "architectures: expected"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused_by_name(
    family: dict[str, Any], override: dict[str, Any], expected: str
) -> None:
    assert expected in refusal({**family, **override})


def test_fp8_says_how_many_values_share_a_scale() -> None:
    assert ModelConfig.from_hf({**V3, **fp8(scale_fmt="ue8m0")}).fp8_block == (128, 128)
    assert ModelConfig.from_hf({**V3, **fp8(weight_block_size=[64, 32])}).fp8_block == (64, 32)


def test_all_problems_are_named_at_once() -> None:
    message = refusal({**V3, "hidden_act": "gelu", "mystery": 1, "n_group": 7, "mlp_bias": True})
    assert message.startswith("config.json: 4 problems: ")
    for key in ("hidden_act", "mystery", "n_group", "mlp_bias"):
        assert f"{key}: " in message


@pytest.mark.parametrize("model_type", ["llama", None, 3, []], ids=str)
def test_other_families_are_refused_with_the_supported_ones(model_type: Any) -> None:
    message = refusal({"model_type": model_type})
    assert "expected one of AXK1, axk1, deepseek_v2, deepseek_v3, glm4_moe_lite, " in message
    assert f"found {model_type!r}; other families are not supported" in message


@pytest.mark.parametrize(
    ("model_type", "missing"),
    [
        ("deepseek_v32", "sparse attention"),
        ("glm_moe_dsa", "sparse attention"),
        ("deepseek_v4", "compressed sparse attention"),
        ("kimi_linear", "linear attention layers"),
        ("bailing_hybrid", "linear attention layers"),
        ("mistral4", "query scale"),
        ("kimi_k25", "vision tower"),
    ],
)
def test_relatives_are_refused_with_what_is_missing(model_type: str, missing: str) -> None:
    message = refusal({"model_type": model_type})
    assert f"model_type {model_type!r}: its " in message
    assert missing in message
    assert "is not supported" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [("{", "expected JSON"), ("[1]", "expected a JSON object, found list"), ("\xff", "JSON")],
)
def test_a_damaged_config_file_is_one_clear_line(
    tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=expected):
        load_config(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_checkpoints_configs(tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        content = (TINY / name).read_bytes()
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
    assert load_config(tmp_path)[0] == load_config(TINY)[0]
    marked, plain = generation_config(tmp_path)[1], generation_config(TINY)[1]
    assert marked == plain != {}


def test_a_config_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="expected a regular file"):
        load_config(tmp_path)


def test_a_folder_without_config_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.json and \*.safetensors"):
        load_config(tmp_path)


def test_the_file_is_named_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match=str(tmp_path / "config.json")):
        load_config(tmp_path)
