"""The grammar of parameter names: parsing and printing, and what a name says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.graphs.errors import BundleError
from shoal.graphs.parameters import EMBEDDING, FINAL_NORM, HEAD, Parameter, Place


@st.composite
def parameters(draw: st.DrawFn) -> Parameter:
    place = draw(st.sampled_from(Place))
    index = 0 if place is Place.MODEL else draw(st.integers(0, 99_999))
    parameter = Parameter(place=place, index=index, part=draw(st.sampled_from(sorted(place.parts))))
    is_stored_in_blocks = parameter.kind is not None
    return parameter.scales if is_stored_in_blocks and draw(st.booleans()) else parameter


@given(parameters())
def test_parsing_takes_back_printing(parameter: Parameter) -> None:
    name = str(parameter)
    assert Parameter.parse(name) == parameter
    assert str(Parameter.parse(name)) == name


@given(parameters(), parameters())
def test_no_two_parameters_share_a_name(a: Parameter, b: Parameter) -> None:
    assert (a == b) == (str(a) == str(b))


@given(parameters(), st.data())
def test_a_name_with_a_mistake_is_refused_or_another_parameters(
    parameter: Parameter, data: st.DataObject
) -> None:
    name = str(parameter)
    place = data.draw(st.integers(0, len(name)))
    wrong = name[:place] + data.draw(st.text(max_size=3)) + name[place + 1 :]
    try:
        found = Parameter.parse(wrong)
    except BundleError as error:
        assert str(error).isprintable()  # noqa: PT017  both outcomes are correct
    else:
        assert str(found) == wrong


@pytest.mark.parametrize(
    ("name", "kind", "section"),
    [
        ("embed_tokens.weight", "embedding", "embed_tokens"),
        ("norm.weight", None, "norm"),
        ("lm_head.weight", "head", "lm_head"),
        ("layers.3.input_layernorm.weight", None, "layers.3"),
        ("layers.3.self_attn.q_proj.weight", "attention_input", "layers.3"),
        ("layers.3.self_attn.kv_a_proj_with_mqa.weight", "attention_input", "layers.3"),
        ("layers.3.self_attn.kv_a_proj_with_mqa.bias", None, "layers.3"),
        ("layers.3.self_attn.kv_a_layernorm.weight", None, "layers.3"),
        ("layers.3.self_attn.w_uk", "attention_latent", "layers.3"),
        ("layers.3.self_attn.w_uv_scales", "attention_latent", "layers.3"),
        ("layers.3.self_attn.o_proj.weight", "attention_output", "layers.3"),
        ("layers.0.mlp.down_proj.weight", "dense", "layers.0"),
        ("layers.0.dense_mlp.down_proj.weight_scales", "dense", "layers.0"),
        ("layers.60.mlp.gate.weight", None, "layers.60"),
        ("layers.60.mlp.gate.e_score_correction_bias", None, "layers.60"),
        ("layers.60.mlp.shared_experts.down_proj.weight", "shared_experts", "layers.60"),
        ("layers.60.mlp.experts.gate_up", "experts", "layers.60"),
        ("mtp.0.layer.mlp.experts.down", "experts", "mtp.0"),
        ("mtp.0.eh_proj.weight", "other", "mtp.0"),
        ("mtp.0.norm.weight", None, "mtp.0"),
    ],
)
def test_a_name_says_what_kind_of_weight_it_is_and_where(
    name: str, kind: str | None, section: str
) -> None:
    parameter = Parameter.parse(name)
    assert parameter.kind == kind
    assert parameter.section == section
    assert parameter.is_routed_experts == (kind == "experts")
    assert parameter.is_mtp == section.startswith("mtp.")
    assert parameter.layer == (int(section[7:]) if section.startswith("layers.") else None)
    assert parameter.is_scales == name.endswith("_scales")


def test_a_weight_that_is_stored_in_blocks_has_scales() -> None:
    experts = Parameter.parse("layers.4.mlp.experts.down")
    assert str(experts.scales) == "layers.4.mlp.experts.down_scales"
    with pytest.raises(BundleError):
        _ = FINAL_NORM.scales  # float32 has none


@pytest.mark.parametrize(
    ("name", "is_gate"),
    [
        ("layers.0.mlp.gate_proj.weight", True),
        ("layers.0.dense_mlp.gate_proj.weight", True),
        ("layers.0.dense_mlp.up_proj.weight", False),
        ("layers.4.mlp.shared_experts.gate_proj.weight", True),
        ("layers.4.mlp.experts.gate_up", True),
        ("layers.4.mlp.experts.gate_up_scales", False),
        ("layers.4.mlp.experts.down", False),
        ("layers.4.mlp.gate.weight", False),
        ("mtp.0.layer.mlp.experts.gate_up", True),
    ],
)
def test_gates_are_those_of_feed_forward_networks(name: str, is_gate: bool) -> None:
    assert Parameter.parse(name).is_gate == is_gate


def test_the_parameters_outside_the_layers_have_names_of_their_own() -> None:
    names = [str(parameter) for parameter in (EMBEDDING, FINAL_NORM, HEAD)]
    assert names == ["embed_tokens.weight", "norm.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "weight",
        "constant.0",
        "layers.weight",
        "layers..mlp.experts.down",
        "layers.03.mlp.experts.down",
        "layers.-1.mlp.experts.down",
        "layers.\u0663.mlp.experts.down",
        "layers.100000.mlp.experts.down",
        "layers." + "9" * 5000 + ".mlp.experts.down",
        "layers.3.layer.mlp.experts.down",
        "layers.3.mlp.experts.7.down",
        "layers.3.norm.weight",
        "mtp.0.mlp.experts.down",
        "mtp.0.layer.norm.weight",
        "norm.weight_scales",
        "layers.3.mlp.gate.weight_scales",
        "embed_tokens.weight_scales_scales",
        "embed_tokens.weight\n",
        "a" * 1_000_000,
        "\u001b[2J",
    ],
)
def test_any_other_name_is_refused_in_one_short_line(name: str) -> None:
    with pytest.raises(BundleError, match="is no name of a parameter") as refused:
        Parameter.parse(name)
    message = str(refused.value)
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize(
    ("place", "index", "part"),
    [
        (Place.MODEL, 1, "norm.weight"),
        (Place.LAYER, -1, "mlp.experts.down"),
        (Place.LAYER, 100_000, "mlp.experts.down"),
        (Place.MTP, 0, "mlp.experts.down"),
    ],
)
def test_what_is_made_of_parts_must_be_in_the_grammar(place: Place, index: int, part: str) -> None:
    with pytest.raises(BundleError):
        Parameter(place=place, index=index, part=part)
