"""Values in config.json that no model has: one short line each, before anything is made of them."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from shoal.export.config.keys import INTEGERS, INTEGERS_OR_NULL
from shoal.export.config.model_config import ModelConfig, load_config
from shoal.graphs.errors import ConfigError

V3 = {"model_type": "deepseek_v3"}
LONGCAT = {"model_type": "longcat_flash"}
MINICPM = {"model_type": "minicpm3"}
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
DIGITS = 10**400
SIZES = (
    *("hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim"),
    *("qk_rope_head_dim", "v_head_dim", "intermediate_size", "moe_intermediate_size"),
)


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_hf(raw)
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize("value", [DIGITS, -DIGITS, 1 << 31], ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("key", [*INTEGERS, *INTEGERS_OR_NULL])
@pytest.mark.parametrize("family", [V3, LONGCAT, MINICPM], ids=lambda raw: raw["model_type"])
def test_integers_of_no_size_of_a_model_are_named(
    family: dict[str, Any], key: str, value: int
) -> None:
    message = refusal({**family, key: value})
    expected = "(at most 2147483647|0)"  # 0 where a family has nothing to count
    assert re.search(f"{key}: expected {expected}, found {str(value)[:50]}", message)
    assert len(message) < 1000


@pytest.mark.parametrize("key", SIZES)
def test_no_size_makes_a_tensor_of_more_than_64_bits(key: str) -> None:
    assert f"{key}: expected at most 262144, found 2147483646" in refusal({**V3, key: 2**31 - 2})


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        (V3, {"rms_norm_eps": DIGITS}, "rms_norm_eps: expected a finite number up to 1e+12, found"),
        (V3, {"rope_theta": 1e13}, "rope_theta: expected a finite number up to 1e+12, found 10000"),
        (
            V3,
            {"routed_scaling_factor": float("inf")},
            "expected a finite number up to 1e+12, found",
        ),
        (V3, {"eos_token_id": [1, DIGITS]}, "eos_token_id: expected a token id or a list of them"),
        (V3, {"eos_token_id": [-1] * 100_000}, "eos_token_id: expected a token id or a list"),
        (V3, {"vocab_size": 2**31 - 1}, "vocab_size: expected at most 16777216, found 2147483647"),
        (V3, {"num_nextn_predict_layers": 17}, "num_nextn_predict_layers: expected at most 16"),
        (V3, {"n_shared_experts": 1025}, "n_shared_experts: expected at most 1024, found 1025"),
        (
            V3,
            {"num_hidden_layers": 1024, "n_routed_experts": 1024},
            "num_hidden_layers times n_routed_experts: expected at most 131072, found 1048576",
        ),
        (V3, {"rope_scaling": YARN | {"factor": DIGITS}}, "factor: expected a finite number up to"),
        (V3, {"rope_scaling": YARN | {"mscale": 1e200}}, "mscale: expected a finite number up to"),
        (V3, {"rope_scaling": YARN | {"beta_slow": 1e-300}}, "beta_slow: expected 1e-06 up to"),
        (V3, {"rope_scaling": "x" * 100_000}, "rope_scaling: expected an object, found 'xxx"),
        (V3, {"architectures": ["x"] * 100_000}, "architectures: expected"),
        (V3, {"quantization_config": {"weight_block_size": [DIGITS, 1]}}, "two whole numbers from"),
        (V3, {"n" * 100_000: 1}, "nnn...: unknown key"),
        (V3, {"model_type": "x" * 100_000}, "found 'xxx"),
        (LONGCAT, {"num_layers": DIGITS}, "num_layers: expected at most 2147483647, found 1000"),
        (LONGCAT, {"num_layers": 1000}, "num_hidden_layers: expected at most 1024, found 2000"),
        (LONGCAT, {"zero_expert_num": 1025}, "zero_expert_num: expected 0 to 1024, found 1025"),
        (MINICPM, {"scale_emb": DIGITS}, "scale_emb: expected a finite number up to 1e+12, found"),
        (
            MINICPM,
            {"rope_scaling": {"type": "longrope", "short_factor": [DIGITS] * 16}},
            "short_factor: expected 16 numbers above 0, half of qk_rope_head_dim, found [1000",
        ),
        (
            {"model_type": "glm4_moe_lite"},
            {"mlp_layer_types": [["dense"]] * 47},
            "mlp_layer_types: expected 47 times 'dense' or 'sparse', found [['dense']",
        ),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_values_of_no_model_are_refused_in_a_short_line(
    family: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    message = refusal({**family, **changes})
    assert expected in message
    assert len(message) < 1000


def test_factors_are_not_made_up_by_the_number_that_should_be_there() -> None:
    longrope = {"type": "longrope", "original_max_position_embeddings": 4096}
    tracemalloc.start()
    try:
        refusal({**MINICPM, "rope_scaling": longrope, "qk_rope_head_dim": 2**31 - 2})
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_very_many_unknown_keys_make_no_long_line() -> None:
    message = refusal({**V3, **{f"key_{number}": 1 for number in range(100_000)}})
    assert message.startswith("config.json: 100000 problems: key_0: unknown key")
    assert message.endswith("; and 99900 more")
    assert len(message) < 20_000


def test_a_number_of_very_many_digits_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(V3)[:-1] + ', "hidden_size": ' + "9" * 100_000 + "}")
    with pytest.raises(ConfigError, match=r"expected JSON, found: Exceeds the limit .* download"):
        load_config(tmp_path)
