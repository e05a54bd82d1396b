"""A decoder graph for tokens of several contexts: what changes in it, and what it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.graphs.one_op import Array, assert_near
from tests.graphs.op_inputs import float_inputs, with_cache
from tests.graphs.passes.attention_graphs import W_UK, W_UV, C, R, decoder_graph
from tests.graphs.passes.small_graph import FLOAT, INT64, SmallGraph, described, lines, run
from tests.tolerances import FLOAT32_SUMS

from shoal.graphs.cache_types import CACHE_TYPES, CacheType
from shoal.graphs.passes.change_cache import change_cache
from shoal.graphs.passes.split_contexts import split_contexts

PARTS = ("cache", "cache_scales", "cache_rope")


def test_attention_becomes_one_node_for_each_slot_with_a_cache_of_its_own() -> None:
    model = decoder_graph().model
    split_contexts(model, 2)
    assert described(model) == lines("""
        input input_ids int64[1,T]
        input position_ids int64[1,T]
        input slot_rows int64[2]
        input q_nope float32[1,T,3,12]
        input q_rope float32[1,T,3,8]
        input latent float32[1,T,32]
        input k_rope float32[1,T,8]
        input cache.0.0 float32[1,S0,40]
        input cache.0.1 float32[1,S1,40]
        weight layers.0.self_attn.w_uk float32[3,12,32]
        weight layers.0.self_attn.w_uv float32[3,10,32]
        val_0, val_1 = Split(q_nope, slot_rows) {axis=1}
        val_2, val_3 = Split(q_rope, slot_rows) {axis=1}
        val_4, val_5 = Split(latent, slot_rows) {axis=1}
        val_6, val_7 = Split(k_rope, slot_rows) {axis=1}
        y.0/slot.0, cache_out.0.0 = shoal.FloatLatentAttention(val_0, val_2, \\
            val_4, val_6, cache.0.0, layers.0.self_attn.w_uk, \\
            layers.0.self_attn.w_uv) {softmax_scale=0.17}
        y.0/slot.1, cache_out.0.1 = shoal.FloatLatentAttention(val_1, val_3, \\
            val_5, val_7, cache.0.1, layers.0.self_attn.w_uk, \\
            layers.0.self_attn.w_uv) {softmax_scale=0.17}
        val_8 = Concat(y.0/slot.0, y.0/slot.1) {axis=1}
        y = Sum(val_8) {}
        output y float32[1,T,3,10]
        output cache_out.0.0 float32[1,S0,40]
        output cache_out.0.1 float32[1,S1,40]
    """)


def test_every_part_of_every_cache_is_there_once_for_each_slot() -> None:
    model = decoder_graph(layers=(0, 1)).model
    change_cache(model, "int8", kv_lora_rank=C, qk_rope_head_dim=R)
    split_contexts(model, 3)
    names = [(part, layer, slot) for layer in (0, 1) for part in PARTS for slot in range(3)]
    inputs = [value.name for value in model.graph.inputs]
    outputs = [value.name for value in model.graph.outputs]
    assert inputs[7:] == [f"{part}.{layer}.{slot}" for part, layer, slot in names]
    assert outputs[1:] == [f"{part}_out.{layer}.{slot}" for part, layer, slot in names]


def test_everything_but_attention_reads_the_rows_of_all_contexts_at_once() -> None:
    graph = SmallGraph()
    ids = graph.input("input_ids", INT64, [1, "T"])
    graph.input("position_ids", INT64, [1, "T"])
    (x,) = graph.node("FloatEmbedding", [ids, graph.weight("embed_tokens.weight", (9, 4))], ["x"])
    graph.output(x, FLOAT, [1, "T", 4])
    before = described(graph.model)
    split_contexts(graph.model, 2)
    assert described(graph.model) == [*before[:2], "input slot_rows int64[2]", *before[2:]]


def test_each_row_decides_about_its_frequencies(tmp_path: Path) -> None:
    graph = SmallGraph()
    ids = graph.input("input_ids", INT64, [1, "T"])
    positions = graph.input("position_ids", INT64, [1, "T"])
    (largest,) = graph.node("ReduceMax", [positions], ["largest"], domain="", keepdims=0)
    (limit,) = graph.node("Constant", [], ["limit"], domain="", value_int=10)
    (is_long,) = graph.node("GreaterOrEqual", [largest, limit], ["is_long"], domain="")
    (long,) = graph.node("Constant", [], ["long"], domain="", value_ints=[1, 2])
    (short,) = graph.node("Constant", [], ["short"], domain="", value_ints=[3, 4])
    (frequencies,) = graph.node("Where", [is_long, long, short], ["frequencies"], domain="")
    graph.output(frequencies, INT64, [1, "T", 2])
    (other,) = graph.node("ReduceMax", [ids], ["other"], domain="")
    graph.output(other, INT64, [1, 1])
    split_contexts(graph.model, 3)
    rows = np.array([[10, 9, 30]])
    inputs = {"input_ids": rows, "position_ids": rows, "slot_rows": np.ones(3, np.int64)}
    found = run(graph.model, {}, inputs, tmp_path / "model")
    assert found["frequencies"].tolist() == [[[1, 2], [3, 4], [1, 2]]]
    assert found["other"].tolist() == [[30]], "no other maximum is touched"


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_contexts_in_one_step_get_what_they_get_alone(
    cache_type: CacheType, tmp_path: Path
) -> None:
    rows, lengths = (2, 0, 1), (5, 3, 9)  # new tokens, and rows of the cache with them, by slot
    given = [
        with_cache(float_inputs(slot, rows[slot], lengths[slot]), cache_type) for slot in range(3)
    ]
    weights = {W_UK.format(0): given[0]["w_uk"], W_UV.format(0): given[0]["w_uv"]}
    model = decoder_graph().model
    change_cache(model, cache_type, kv_lora_rank=C, qk_rope_head_dim=R)
    alone = [
        run(model, weights, _inputs_alone(each), tmp_path / f"alone.{slot}")
        for slot, each in enumerate(given)
        if rows[slot]
    ]
    split_contexts(model, 3)
    together = run(model, weights, _inputs_together(given, rows), tmp_path / "together")
    expected = np.concatenate([each["y"] for each in alone], axis=1)
    assert_near(together["y"], expected, FLOAT32_SUMS)
    for slot, each in zip((0, 2), alone, strict=True):
        for name in each.keys() - {"y"}:
            np.testing.assert_array_equal(together[f"{name}.{slot}"], each[name])
    for name in [name for name in given[1] if name.startswith("cache")]:
        np.testing.assert_array_equal(together[f"{name}_out.0.1"], given[1][name])


def _inputs_alone(given: dict[str, Array]) -> dict[str, Array]:
    """Op inputs as those of the graph of one context."""
    ids = np.zeros(given["latent"].shape[:2], np.int64)
    inputs: dict[str, Array] = {"input_ids": ids, "position_ids": ids}
    for name, value in given.items():
        if not name.startswith("w_u"):
            inputs[f"{name}.0" if name.startswith("cache") else name] = value
    return inputs


def _inputs_together(given: list[dict[str, Array]], rows: tuple[int, ...]) -> dict[str, Array]:
    """Op inputs of several contexts as those of the split graph."""
    alone = [_inputs_alone(each) for each in given]
    inputs: dict[str, Array] = {"slot_rows": np.array(rows)}
    for name in alone[0]:
        if name.startswith("cache"):
            inputs |= {f"{name}.{slot}": each[name] for slot, each in enumerate(alone)}
        else:
            inputs[name] = np.concatenate([each[name] for each in alone], axis=1)
    return inputs
