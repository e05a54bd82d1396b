"""Latent caches of another type: what changes in a graph, and what it computes then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.graphs.one_op import Array, assert_near
from tests.graphs.op_inputs import SCALE, float_inputs, int8_inputs, with_cache
from tests.graphs.passes.attention_graphs import W_UK, W_UV, C, R, decoder_graph
from tests.graphs.passes.small_graph import SmallGraph, described, lines, run
from tests.tolerances import ATTENTION_FORMS

from shoal.graphs.cache_types import CACHE_TYPES, CacheType
from shoal.graphs.ops.int8_cache import float_latent_attention_int8_cache
from shoal.graphs.ops.latent_attention import float_latent_attention
from shoal.graphs.passes.change_cache import change_cache
from shoal.graphs.passes.quantize_weights import quantize_weights
from shoal.graphs.quantize import dequantize_blocks
from shoal.graphs.recipes import RECIPES


def change(graph: SmallGraph, cache_type: CacheType) -> SmallGraph:
    change_cache(graph.model, cache_type, kv_lora_rank=C, qk_rope_head_dim=R)
    return graph


def test_float16_caches_only_have_another_type() -> None:
    before = described(decoder_graph().model)
    after = described(change(decoder_graph(), "float16").model)
    assert [line for line in after if line not in before] == lines("""
        input cache.0 float16[1,S,40]
        output cache_out.0 float16[1,S,40]
    """)
    assert len(after) == len(before)


def test_int8_caches_have_scales_and_rope_keys_beside_the_codes() -> None:
    assert described(change(decoder_graph(), "int8").model) == lines("""
        input input_ids int64[1,T]
        input position_ids int64[1,T]
        input q_nope float32[1,T,3,12]
        input q_rope float32[1,T,3,8]
        input latent float32[1,T,32]
        input k_rope float32[1,T,8]
        input cache.0 uint8[1,S,32]
        input cache_scales.0 float32[1,S,1]
        input cache_rope.0 float16[1,S,8]
        weight layers.0.self_attn.w_uk float32[3,12,32]
        weight layers.0.self_attn.w_uv float32[3,10,32]
        y.0, cache_out.0, cache_scales_out.0, cache_rope_out.0 = \\
            shoal.FloatLatentAttentionInt8Cache(q_nope, q_rope, latent, k_rope, cache.0, \\
            cache_scales.0, cache_rope.0, layers.0.self_attn.w_uk, layers.0.self_attn.w_uv) \\
            {softmax_scale=0.17, cache_block_size=32}
        y = Sum(y.0) {}
        output y float32[1,T,3,10]
        output cache_out.0 uint8[1,S,32]
        output cache_scales_out.0 float32[1,S,1]
        output cache_rope_out.0 float16[1,S,8]
    """)


def test_parts_are_named_after_the_layer_also_where_other_layers_have_no_cache() -> None:
    graph = change(decoder_graph(layers=(1, 4)), "int8").model.graph
    parts = ("cache", "cache_scales", "cache_rope")
    inputs = [value.name for value in graph.inputs]
    assert inputs[-6:] == [f"{part}.{layer}" for layer in (1, 4) for part in parts]
    outputs = [value.name for value in graph.outputs]
    assert outputs[1:] == [f"{part}_out.{layer}" for layer in (1, 4) for part in parts]


def test_int8_weights_and_int8_caches_go_together() -> None:
    graph = decoder_graph()
    quantize_weights(graph.model, RECIPES["int8"])
    attention = next(iter(change(graph, "int8").model.graph))
    assert attention.op_type == "LatentAttentionInt8Cache"
    assert [value and value.name for value in attention.inputs][4:] == [
        *("cache.0", "cache_scales.0", "cache_rope.0"),
        *(f"layers.0.self_attn.w_u{which}{part}" for which in "kv" for part in ("", "_scales")),
    ]
    attributes = {name: attribute.value for name, attribute in attention.attributes.items()}
    assert attributes == {
        "softmax_scale": pytest.approx(SCALE),
        "block_size": 32,
        "cache_block_size": 32,
    }


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_changing_twice_is_changing_once(cache_type: CacheType) -> None:
    graph = change(decoder_graph(layers=(0, 1)), cache_type)
    once = described(graph.model)
    assert described(change(graph, cache_type).model) == once


def test_float32_is_what_a_graph_is_built_with() -> None:
    before = described(decoder_graph().model)
    assert described(change(decoder_graph(), "float32").model) == before


def test_a_graph_without_attention_stays_as_it_is() -> None:
    graph = SmallGraph()
    assert described(change(graph, "int8").model) == []


def test_latents_that_make_no_blocks_have_no_int8_cache() -> None:
    with pytest.raises(AssertionError, match="multiples of 16"):
        change_cache(decoder_graph().model, "int8", kv_lora_rank=24, qk_rope_head_dim=R)


@pytest.mark.parametrize("int8_weights", [False, True])
@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_the_changed_graph_computes_what_the_reference_does(
    cache_type: CacheType, int8_weights: bool, tmp_path: Path
) -> None:
    graph, given = decoder_graph(), float_inputs(4, 3, 11)
    if int8_weights:
        quantize_weights(graph.model, RECIPES["int8"])
        given = int8_inputs(given, 32)
    change(graph, cache_type)
    given = with_cache(given, cache_type)
    found = run(graph.model, *weights_and_inputs(given), tmp_path / "model")
    expected, *caches = reference(given)
    assert_near(found["y"], expected, ATTENTION_FORMS)
    names = ("cache_out.0", "cache_scales_out.0", "cache_rope_out.0")
    assert list(found) == ["y", *names[: len(caches)]]
    for name, cache in zip(names, caches, strict=False):
        np.testing.assert_array_equal(found[name], cache)


def weights_and_inputs(given: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """What op inputs are to the graph of one layer."""
    weights, inputs = {}, {}
    for name, value in given.items():
        if name.startswith("w_u"):
            prefix = (W_UK if name.startswith("w_uk") else W_UV).format(0)
            weights[prefix + name[4:]] = value
        else:
            inputs[f"{name}.0" if name.startswith("cache") else name] = value
    one = np.zeros((1, given["latent"].shape[1]), np.int64)
    return weights, {"input_ids": one, "position_ids": one, **inputs}


def reference(given: dict[str, Array]) -> list[Array]:
    """y and the caches by NumPy."""
    floats = dict(given)
    for name in ("w_uk", "w_uv"):
        if f"{name}_scales" in floats:
            floats[name] = dequantize_blocks(floats[name], floats.pop(f"{name}_scales"))
    if "cache_scales" in floats:
        y, caches = float_latent_attention_int8_cache(**floats, softmax_scale=SCALE)
        return [y, *caches]
    return list(float_latent_attention(**floats, softmax_scale=SCALE))
