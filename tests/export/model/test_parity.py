"""The reference modules against transformers, through files on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.export.family_cases import CASES
from tests.export.oracle import load, make_v2, make_v3, raw_config, run, save
from tests.tolerances import PARITY
from torch import Tensor

from shoal.export.model.load import load_model
from shoal.export.model.transformer import CausalLM

pytestmark = pytest.mark.dependencies

TINY = Path(__file__).parents[3] / "checkpoints" / "tiny-v3"
EXAMPLES = settings(max_examples=15, deadline=None, derandomize=True, database=None)


def forward(model: CausalLM, input_ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    b, t = input_ids.shape
    states = model.grow_states(None, t, batch=b)
    with torch.inference_mode():
        hidden, _, routing = model(input_ids, torch.arange(t).expand(b, t), states)
        return model.head(hidden), [r.expert_ids.flatten(0, 1) for r in routing.values()]


def assert_same(ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]]) -> None:
    for layer, (a, b) in enumerate(zip(ours[1], theirs[1], strict=True)):
        differing = (a.sort(-1).values != b.sort(-1).values).any(-1).nonzero().flatten().tolist()
        assert not differing, f"MoE layer {layer}: other experts for tokens {differing}"
    error = (ours[0] - theirs[0]).abs().max().item()
    assert error <= PARITY, f"logits differ by {error:.3g} at most, {PARITY} allowed"


def check(oracle: Any, num_tokens: int = 24) -> None:
    input_ids = torch.randint(0, 97, (2, num_tokens), generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        ours = load_model(save(oracle, Path(folder)))
    assert_same(forward(ours, input_ids), run(oracle, input_ids))


yarn = st.fixed_dictionaries(
    {
        "rope_type": st.just("yarn"),
        "rope_theta": st.sampled_from([100.0, 10000.0]),
        "factor": st.sampled_from([1.0, 4.0, 40.0]),
        "original_max_position_embeddings": st.sampled_from([8, 16]),
    },
    optional={
        "beta_fast": st.sampled_from([2.0, 32.0]),
        "beta_slow": st.sampled_from([0.25, 1.0]),
        "mscale": st.sampled_from([0.707, 1.0]),
        "mscale_all_dim": st.sampled_from([0.707, 1.0, 0.0]),
        "truncate": st.booleans(),
        "attention_factor": st.just(1.3),
    },
)
common = {
    "num_attention_heads": st.sampled_from([1, 2, 4]),
    "q_lora_rank": st.sampled_from([None, 12]),
    "kv_lora_rank": st.sampled_from([8, 24]),
    "qk_nope_head_dim": st.sampled_from([4, 16]),
    "qk_rope_head_dim": st.sampled_from([2, 8]),
    "v_head_dim": st.sampled_from([4, 12]),
    "attention_bias": st.booleans(),
    "tie_word_embeddings": st.booleans(),
    "first_k_dense_replace": st.integers(0, 3),
    "n_shared_experts": st.integers(1, 2),
    "routed_scaling_factor": st.sampled_from([1.0, 2.5]),
    "rope_parameters": st.none() | yarn,
}
ROUTING_KEYS = ("n_routed_experts", "n_group", "topk_group", "num_experts_per_tok")
v3_routing = st.sampled_from(
    [(8, 4, 2, 3), (8, 1, 1, 8), (8, 2, 1, 4), (6, 3, 3, 6), (12, 2, 2, 1)]
).map(lambda r: dict(zip(ROUTING_KEYS, r, strict=True)))
v2_routing = st.sampled_from([(8, 4, 2, 3), (8, 1, 1, 8), (9, 3, 1, 3)]).map(
    lambda r: dict(zip(ROUTING_KEYS, r, strict=True))
)


def test_the_trained_checkpoint_gives_the_logits_and_experts_of_transformers() -> None:
    input_ids = torch.randint(3, 4096, (2, 70), generator=torch.Generator().manual_seed(1))
    ours = load_model(TINY)
    assert_same(forward(ours, input_ids), run(load(TINY), input_ids))


@EXAMPLES
@given(
    values=st.fixed_dictionaries(common),
    routing=v3_routing,
    norm_topk_prob=st.booleans(),
    interleave=st.booleans(),
)
def test_random_v3_models_equal_transformers(
    values: dict[str, Any], routing: dict[str, int], norm_topk_prob: bool, interleave: bool
) -> None:
    check(make_v3(**values, **routing, norm_topk_prob=norm_topk_prob, rope_interleave=interleave))


@EXAMPLES
@given(
    values=st.fixed_dictionaries(common),
    routing=v2_routing,
    method=st.sampled_from(["greedy", "group_limited_greedy"]),
)
def test_random_v2_models_equal_transformers(
    values: dict[str, Any], routing: dict[str, int], method: str
) -> None:
    check(make_v2(**values, **routing, topk_method=method))


longrope = st.fixed_dictionaries(
    {
        "rope_type": st.just("longrope"),
        "rope_theta": st.sampled_from([100.0, 10000.0]),
        "short_factor": st.lists(st.floats(0.5, 4.0), min_size=4, max_size=4),
        "long_factor": st.lists(st.floats(1.0, 40.0), min_size=4, max_size=4),
        "original_max_position_embeddings": st.sampled_from([8, 24, 25, 64]),
    },
    optional={"factor": st.sampled_from([0.5, 4.0]), "attention_factor": st.just(1.3)},
)


@pytest.mark.parametrize("family", ["glm4_moe_lite", "axk1", "youtu", "minicpm3"])
@settings(EXAMPLES, max_examples=6)
@given(data=st.data())
def test_random_models_of_other_families_equal_transformers(
    family: str, data: st.DataObject
) -> None:
    unwanted = {"first_k_dense_replace", "qk_rope_head_dim", "n_shared_experts"}
    values: dict[str, Any] = data.draw(
        st.fixed_dictionaries({k: v for k, v in common.items() if k not in unwanted})
    )
    rope = longrope if family == "minicpm3" else yarn
    values |= {"rope_parameters": data.draw(st.none() | rope)}
    values |= {"num_key_value_heads": values["num_attention_heads"]}
    if family in ("youtu", "minicpm3"):
        del values["routed_scaling_factor"]
    else:
        values |= data.draw(v3_routing)
        kinds = st.sampled_from(["dense", "sparse"])
        values["mlp_layer_types"] = data.draw(st.lists(kinds, min_size=3, max_size=3))
    if family == "minicpm3":
        values["scale_depth"] = data.draw(st.none() | st.sampled_from([0.5, 1.4]))
        values["dim_model_base"] = data.draw(st.none() | st.sampled_from([16, 256]))
        values["scale_emb"] = data.draw(st.sampled_from([1, 12, 0.5]))
        values["v_head_dim"] = data.draw(st.none() | st.just(12))
    if family == "axk1":
        values["q_lora_rank"] = 12
    check(CASES[family].make(**values))


@settings(EXAMPLES, max_examples=6)
@given(
    values=st.fixed_dictionaries(
        {
            "num_layers": st.integers(1, 2),
            "num_attention_heads": st.sampled_from([1, 3, 4]),
            "q_lora_rank": st.sampled_from([8, 24]),
            "kv_lora_rank": st.sampled_from([8, 20]),
            "zero_expert_num": st.sampled_from([0, 1, 12]),
            "moe_topk": st.integers(2, 4),
            "routed_scaling_factor": st.sampled_from([1.0, 6.0]),
            "rope_parameters": st.none() | yarn,
        }
    )
)
def test_random_longcat_models_equal_transformers(values: dict[str, Any]) -> None:
    check(CASES["longcat_flash"].make(num_key_value_heads=values["num_attention_heads"], **values))


@pytest.mark.parametrize("make", [make_v2, make_v3])
def test_a_long_prompt_takes_the_expanded_form_and_still_equals_transformers(make: Any) -> None:
    check(make(), num_tokens=60)


def test_stacked_experts_load_as_separate_ones(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(make_v3(), tmp_path)
    separate = load_model(tmp_path).state_dict()
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in (1, 2):
        prefix = f"model.layers.{layer}.mlp.experts."
        parts = {
            part: torch.stack([tensors.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(8)])
            for part in ("gate", "up", "down")
        }
        tensors[f"{prefix}gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], dim=1)
        tensors[f"{prefix}down_proj"] = parts["down"]
    save_file(tensors, tmp_path / "model.safetensors")
    stacked = load_model(tmp_path).state_dict()
    assert separate.keys() == stacked.keys()
    assert all(torch.equal(separate[name], stacked[name]) for name in separate)


def test_sharded_checkpoints_load_as_single_files(tmp_path: Path) -> None:
    oracle = make_v3()
    oracle.save_pretrained(tmp_path / "one")
    oracle.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = (load_model(tmp_path / name).state_dict() for name in ("one", "many"))
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_absent_keys_mean_what_transformers_takes_them_for(tmp_path: Path) -> None:
    """Each optional key is dropped in turn from a config that has transformers' defaults."""
    from transformers import DeepseekV2Config, DeepseekV3Config

    from shoal.export.config.model_config import ModelConfig

    for config_class in (DeepseekV2Config, DeepseekV3Config):
        config = config_class(num_experts_per_tok=6, num_key_value_heads=None)
        config.save_pretrained(tmp_path)
        full = raw_config(tmp_path)
        for aside in ("head_dim", "qk_head_dim", "num_key_value_heads"):
            full.pop(aside, None)
        whole = ModelConfig.from_hf(full)
        for key in set(full) - {"model_type", "num_experts_per_tok"}:
            rest = {name: value for name, value in full.items() if name != key}
            assert ModelConfig.from_hf(rest) == whole, key


def test_token_by_token_decoding_equals_one_shot() -> None:
    model = load_model(TINY)
    input_ids = torch.randint(3, 4096, (1, 40), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = model.logits(input_ids)
        states, rows = None, []
        for position in range(input_ids.shape[1]):
            states = model.grow_states(states, 1)
            token = input_ids[:, position : position + 1]
            hidden, states, _ = model(token, torch.tensor([[position]]), states)
            rows.append(model.head(hidden))
    error = (torch.cat(rows, dim=1) - expected).abs().max().item()
    assert error <= PARITY, f"logits differ by {error:.3g} at most"
