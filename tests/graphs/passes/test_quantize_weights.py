"""Float ops become int8 ops: which, with what weights, and to which numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.graphs.one_op import Array, assert_near
from tests.graphs.op_inputs import SCALE, choose, float_inputs, grid, int8_inputs, tie_bound
from tests.graphs.passes.small_graph import FLOAT, INT64, SmallGraph, described, lines, run
from tests.tolerances import ATTENTION_FORMS, FLOAT32_SUMS

from shoal.graphs.errors import BundleError, ExportError
from shoal.graphs.ops.embedding import embedding
from shoal.graphs.ops.latent_attention import latent_attention
from shoal.graphs.ops.linear import linear, precise_linear
from shoal.graphs.ops.sparse_experts import int4_sparse_experts, sparse_experts
from shoal.graphs.passes.quantize_weights import quantize_weights
from shoal.graphs.quantize import quantize_blocks, quantize_nibbles, unpack_nibbles
from shoal.graphs.recipes import RECIPES, Recipe, WeightFormat, choose_recipe

OUTPUT_PROJECTION = "layers.0.self_attn.o_proj.weight"
DENSE = "layers.0.mlp.up_proj.weight"
TABLE = "embed_tokens.weight"
GATE_UP, DOWN = "layers.1.mlp.experts.gate_up", "layers.1.mlp.experts.down"
W_UK, W_UV = "layers.0.self_attn.w_uk", "layers.0.self_attn.w_uv"
SIZE = 16  # of blocks in the tests that compute


def blocks_of(size: int, recipe: str = "int8") -> Recipe:
    chosen = choose_recipe(recipe, size)
    assert chosen is not None
    return chosen


def linear_graph(name: str = OUTPUT_PROJECTION, n: int = 24, k: int = 64) -> SmallGraph:
    graph = SmallGraph()
    x = graph.input("x", FLOAT, [1, "T", k])
    (y,) = graph.node("FloatLinear", [x, graph.weight(name, (n, k))], ["y"])
    graph.output(y, FLOAT, [1, "T", n])
    return graph


def embedding_graph() -> SmallGraph:
    graph = SmallGraph()
    ids = graph.input("input_ids", INT64, [1, "T"])
    (y,) = graph.node("FloatEmbedding", [ids, graph.weight(TABLE, (20, 32))], ["y"])
    graph.output(y, FLOAT, [1, "T", 32])
    return graph


def experts_graph() -> SmallGraph:
    graph = SmallGraph()
    x = graph.input("x", FLOAT, [1, "T", 64])
    ids = graph.input("expert_ids", INT64, [1, "T", 3])
    weights = graph.input("expert_weights", FLOAT, [1, "T", 3])
    stored = [graph.weight(GATE_UP, (6, 64, 64)), graph.weight(DOWN, (6, 64, 32))]
    inputs = [x, ids, weights, *stored]
    (y,) = graph.node("FloatSparseExperts", inputs, ["y"], num_experts_per_tok=3)
    graph.output(y, FLOAT, [1, "T", 64])
    return graph


def attention_graph() -> SmallGraph:
    graph = SmallGraph()
    inputs = [
        graph.input("q_nope", FLOAT, [1, "T", 3, 12]),
        graph.input("q_rope", FLOAT, [1, "T", 3, 8]),
        graph.input("latent", FLOAT, [1, "T", 32]),
        graph.input("k_rope", FLOAT, [1, "T", 8]),
        graph.input("cache.0", FLOAT, [1, "S", 40]),
        graph.weight(W_UK, (3, 12, 32)),
        graph.weight(W_UV, (3, 10, 32)),
    ]
    outputs = ["y", "cache_out.0"]
    y, cache = graph.node("FloatLatentAttention", inputs, outputs, softmax_scale=SCALE)
    graph.output(y, FLOAT, [1, "T", 3, 10])
    graph.output(cache, FLOAT, [1, "S", 40])
    return graph


def test_a_linear_map_takes_codes_in_blocks_and_their_scales() -> None:
    model = linear_graph().model
    formats = quantize_weights(model, RECIPES["int8"])
    assert formats == {OUTPUT_PROJECTION: WeightFormat(bits=8, block_size=64, input_terms=1)}
    assert described(model) == lines("""
        input x float32[1,T,64]
        weight layers.0.self_attn.o_proj.weight uint8[24,1,64]
        weight layers.0.self_attn.o_proj.weight_scales float32[24,1]
        y = shoal.Linear(x, layers.0.self_attn.o_proj.weight, \\
            layers.0.self_attn.o_proj.weight_scales) {K=64, N=24, block_size=64}
        output y float32[1,T,24]
    """)


def test_a_weight_whose_inputs_have_outliers_takes_them_in_two_terms() -> None:
    model = linear_graph(DENSE).model
    formats = quantize_weights(model, RECIPES["int8"])
    assert formats == {DENSE: WeightFormat(bits=8, block_size=64, input_terms=2)}
    assert [node.op_type for node in model.graph] == ["PreciseLinear"]


def test_a_table_keeps_its_shape() -> None:
    model = embedding_graph().model
    quantize_weights(model, blocks_of(16))
    assert described(model) == lines("""
        input input_ids int64[1,T]
        weight embed_tokens.weight uint8[20,32]
        weight embed_tokens.weight_scales float32[20,2]
        y = shoal.Embedding(input_ids, embed_tokens.weight, embed_tokens.weight_scales) \\
            {block_size=16}
        output y float32[1,T,32]
    """)


def test_experts_share_the_block_size_that_suits_both_of_their_weights() -> None:
    model = experts_graph().model
    formats = quantize_weights(model, RECIPES["int8"])
    stored = WeightFormat(bits=8, block_size=32, input_terms=1)  # down has rows of 32
    assert formats == {GATE_UP: stored, DOWN: stored}
    assert described(model) == lines("""
        input x float32[1,T,64]
        input expert_ids int64[1,T,3]
        input expert_weights float32[1,T,3]
        weight layers.1.mlp.experts.gate_up uint8[6,64,64]
        weight layers.1.mlp.experts.gate_up_scales float32[6,64,2]
        weight layers.1.mlp.experts.down uint8[6,64,32]
        weight layers.1.mlp.experts.down_scales float32[6,64,1]
        y = shoal.SparseExperts(x, expert_ids, expert_weights, layers.1.mlp.experts.gate_up, \\
            layers.1.mlp.experts.gate_up_scales, layers.1.mlp.experts.down, \\
            layers.1.mlp.experts.down_scales) {num_experts_per_tok=3, block_size=32}
        output y float32[1,T,64]
    """)


def test_experts_in_4_bits_have_half_the_bytes() -> None:
    model = experts_graph().model
    formats = quantize_weights(model, RECIPES["int4-experts"])
    assert formats[GATE_UP] == WeightFormat(bits=4, block_size=32, input_terms=1)
    assert described(model)[3:7] == lines("""
        weight layers.1.mlp.experts.gate_up uint8[6,64,32]
        weight layers.1.mlp.experts.gate_up_scales float32[6,64,2]
        weight layers.1.mlp.experts.down uint8[6,64,16]
        weight layers.1.mlp.experts.down_scales float32[6,64,1]
    """)
    assert [node.op_type for node in model.graph] == ["Int4SparseExperts"]


def test_attention_keeps_its_caches_and_outputs() -> None:
    model = attention_graph().model
    quantize_weights(model, RECIPES["int8"])
    assert described(model) == lines("""
        input q_nope float32[1,T,3,12]
        input q_rope float32[1,T,3,8]
        input latent float32[1,T,32]
        input k_rope float32[1,T,8]
        input cache.0 float32[1,S,40]
        weight layers.0.self_attn.w_uk uint8[3,12,32]
        weight layers.0.self_attn.w_uk_scales float32[3,12,1]
        weight layers.0.self_attn.w_uv uint8[3,10,32]
        weight layers.0.self_attn.w_uv_scales float32[3,10,1]
        y, cache_out.0 = shoal.LatentAttention(q_nope, q_rope, latent, k_rope, cache.0, \\
            layers.0.self_attn.w_uk, layers.0.self_attn.w_uk_scales, layers.0.self_attn.w_uv, \\
            layers.0.self_attn.w_uv_scales) {softmax_scale=0.17, block_size=32}
        output y float32[1,T,3,10]
        output cache_out.0 float32[1,S,40]
    """)


def test_what_is_no_op_of_ours_stays_float32() -> None:
    graph = SmallGraph()
    x = graph.input("x", FLOAT, [1, "T", 64])
    norm = graph.weight("norm.weight", (64,))
    (normed,) = graph.node("RMSNormalization", [x, norm], ["normed"], domain="", axis=-1)
    head = graph.weight("lm_head.weight", (24, 64))
    (y,) = graph.node("FloatLinear", [normed, head], ["y"])
    graph.output(y, FLOAT, [1, "T", 24])
    quantize_weights(graph.model, RECIPES["int8"])
    assert described(graph.model) == lines("""
        input x float32[1,T,64]
        weight norm.weight float32[64]
        weight lm_head.weight uint8[24,1,64]
        weight lm_head.weight_scales float32[24,1]
        normed = RMSNormalization(x, norm.weight) {axis=-1}
        y = shoal.Linear(normed, lm_head.weight, lm_head.weight_scales) \\
            {K=64, N=24, block_size=64}
        output y float32[1,T,24]
    """)


def test_nodes_that_share_a_weight_share_its_codes() -> None:
    graph = SmallGraph()
    x = graph.input("x", FLOAT, [1, "T", 64])
    weight = graph.weight(OUTPUT_PROJECTION, (64, 64))
    (once,) = graph.node("FloatLinear", [x, weight], ["once"])
    (twice,) = graph.node("FloatLinear", [once, weight], ["twice"])
    graph.output(twice, FLOAT, [1, "T", 64])
    quantize_weights(graph.model, RECIPES["int8"])
    assert list(graph.model.graph.initializers) == [
        OUTPUT_PROJECTION,
        f"{OUTPUT_PROJECTION}_scales",
    ]
    first, second = graph.model.graph
    assert first.inputs[1:] == second.inputs[1:]
    assert second.inputs[0] is first.outputs[0]


def test_a_second_pass_changes_nothing() -> None:
    model = attention_graph().model
    quantize_weights(model, RECIPES["int8"])
    before = described(model)
    assert quantize_weights(model, RECIPES["int8-accurate"]) == {}
    assert described(model) == before


@pytest.mark.parametrize(("k", "block_size"), [(128, 64), (96, 32), (80, 16)])
def test_blocks_are_as_large_as_the_rows_allow(k: int, block_size: int) -> None:
    formats = quantize_weights(linear_graph(k=k).model, RECIPES["int8"])
    assert formats[OUTPUT_PROJECTION].block_size == block_size


def test_rows_that_make_no_blocks_are_refused() -> None:
    with pytest.raises(ExportError, match=r"a multiple of 16, found 40.*--weights fp32"):
        quantize_weights(linear_graph(k=40).model, RECIPES["int8"])


def test_a_weight_that_no_parameter_is_called_is_refused() -> None:
    with pytest.raises(BundleError, match="is no name of a parameter"):
        quantize_weights(linear_graph("layers.0.surprise.weight").model, RECIPES["int8"])


@pytest.mark.parametrize("name", [OUTPUT_PROJECTION, DENSE])
def test_int8_linear_maps_compute_what_their_reference_does(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    model = linear_graph(name).model
    formats = quantize_weights(model, blocks_of(SIZE))
    codes, scales = quantize_blocks(rng.standard_normal((24, 64), np.float32), SIZE)
    x = grid(rng, (1, 5, 64), SIZE)
    weights: dict[str, Array] = {name: codes, f"{name}_scales": scales}
    found = run(model, weights, {"x": x}, tmp_path / "model")
    reference = precise_linear if formats[name].input_terms == 2 else linear
    expected = reference(x, codes.reshape(24, -1, SIZE), scales)
    assert_near(found["y"], expected, FLOAT32_SUMS)


def test_an_int8_table_gives_the_rows_of_its_reference(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    model = embedding_graph().model
    quantize_weights(model, blocks_of(SIZE))
    codes, scales = quantize_blocks(rng.standard_normal((20, 32), np.float32), SIZE)
    ids = rng.integers(0, 20, (1, 7))
    weights: dict[str, Array] = {TABLE: codes, f"{TABLE}_scales": scales}
    found = run(model, weights, {"input_ids": ids}, tmp_path / "model")
    np.testing.assert_array_equal(found["y"], embedding(ids, codes, scales))


@pytest.mark.parametrize("bits", [8, 4])
def test_int8_and_4_bit_experts_compute_what_their_reference_does(
    bits: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    model = experts_graph().model
    quantize_weights(model, RECIPES["int8" if bits == 8 else "int4-experts"])
    quantize = quantize_blocks if bits == 8 else quantize_nibbles
    weights: dict[str, Array] = {}
    wide: list[Array] = []
    for name, shape in ((GATE_UP, (6, 64, 64)), (DOWN, (6, 64, 32))):
        codes, scales = quantize(rng.standard_normal(shape, np.float32), 32)
        weights |= {name: codes, f"{name}_scales": scales}
        wide += [codes if bits == 8 else unpack_nibbles(codes), scales]
    inputs = {"x": grid(rng, (1, 5, 64), 32), **choose(rng, (1, 5))}
    found = run(model, weights, inputs, tmp_path / "model")
    reference = sparse_experts if bits == 8 else int4_sparse_experts
    expected = reference(*inputs.values(), *weights.values())
    bound = tie_bound(*inputs.values(), *wide)
    assert_near(found["y"], expected, FLOAT32_SUMS, bound)


def test_attention_with_int8_weights_computes_what_its_reference_does(tmp_path: Path) -> None:
    model = attention_graph().model
    quantize_weights(model, blocks_of(SIZE))
    given = int8_inputs(float_inputs(3, 4, 9), SIZE)
    expected, expected_cache = latent_attention(**given, softmax_scale=SCALE)
    weights = {
        f"layers.0.self_attn.{name}": given.pop(name)
        for name in ("w_uk", "w_uk_scales", "w_uv", "w_uv_scales")
    }
    inputs = {"cache.0" if name == "cache" else name: value for name, value in given.items()}
    found = run(model, weights, inputs, tmp_path / "model")
    assert_near(found["y"], expected, ATTENTION_FORMS)
    np.testing.assert_array_equal(found["cache_out.0"], expected_cache)
