"""Read the keys of a config.json: take what is known, name what is not.

Three kinds of keys: those with a meaning here, those known to leave the model's numbers alone, and
all others, which are refused by name unless their value is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.export.config.families.family import Family, families
from shoal.export.config.families.refused import LACKS
from shoal.export.config.keys import (
    ALIASES,
    COMMON_DEFAULTS,
    FP8_BLOCK,
    HARMLESS,
    HARMLESS_QUANTIZATION,
    INTEGERS,
    INTEGERS_OR_NULL,
    QUANTIZATION_DEFAULTS,
)
from shoal.export.config.rope_scaling import read_longrope, read_yarn
from shoal.export.config.values import MOST_INTEGER, ConfigReader, is_integer
from shoal.graphs.errors import ConfigError
from shoal.graphs.message_parts import shortened


def read_fields(raw: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """The fields of ModelConfig in a parsed config.json, and what is wrong with them.

    Args:
        raw: The JSON object.
        where: Name of the file, for messages.

    Returns:
        Values by field name, all of the right type whatever the file holds; and one clause for
        each problem.

    Raises:
        ConfigError: The model_type is not supported: nothing else can be judged then.
    """
    family = _family_of(raw.get("model_type"), where)
    reader = ConfigReader(raw, {**COMMON_DEFAULTS, **family.defaults})
    reader.take("model_type")
    _check_architectures(reader, family)
    for alias, key in {**ALIASES, **family.aliases}.items():
        reader.merge_alias(alias, key)
    values: dict[str, Any] = {"model_type": family.model_types[0], "wiring": family.wiring}
    for key, only in family.fixed.items():
        reader.expect(key, only)
    values |= _read_sizes(reader, family)
    values |= _read_routing(reader, family)
    values |= _read_rope(reader, family, values)
    if family.extras is not None:
        values |= family.extras(reader, values)
    values["fp8_block"] = _read_quantization(reader)
    reader.expect("hidden_act", "silu")
    reader.expect("mlp_bias", False)
    reader.expect("num_key_value_heads", values["num_attention_heads"])
    reader.expect("qk_head_dim", values["qk_nope_head_dim"] + values["qk_rope_head_dim"])
    reader.refuse_the_rest(HARMLESS | family.harmless)
    return values, reader.problems


def _read_quantization(reader: ConfigReader) -> tuple[int, int]:
    """Rows and columns of an FP8 matrix that share a scale."""
    table = reader.take("quantization_config") or {}
    if not isinstance(table, dict):
        reader.refuse("quantization_config", "an object", table)
        return FP8_BLOCK
    quantization = ConfigReader(table, QUANTIZATION_DEFAULTS, "quantization_config.")
    method = quantization.take("quant_method")
    if method != "fp8":
        meaning = "'fp8' (convert the weights to bfloat16 first)"
        reader.refuse("quantization_config.quant_method", meaning, method)
        return FP8_BLOCK
    quantization.expect("fmt", "e4m3")
    block = quantization.take("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(map(_is_positive, block))):
        quantization.refuse("weight_block_size", "two whole numbers from 1 on", block)
        block = FP8_BLOCK
    quantization.refuse_the_rest(HARMLESS_QUANTIZATION)
    reader.problems += quantization.problems
    return block[0], block[1]


def _is_positive(value: Any) -> bool:
    return is_integer(value) and 0 < value <= MOST_INTEGER


def _family_of(model_type: Any, where: str) -> Family:
    known = families()
    if not isinstance(model_type, str) or model_type not in known:
        lacks = LACKS.get(model_type) if isinstance(model_type, str) else None
        if lacks is not None:
            raise ConfigError(
                f"{where}: model_type {model_type!r}: {lacks} is not supported; shoal exports "
                f"{', '.join(sorted(known))}"
            )
        raise ConfigError(
            f"{where}: model_type: expected one of {', '.join(sorted(known))}, found "
            f"{shortened(repr(model_type))}; other families are not supported"
        )
    return known[model_type]


def _check_architectures(reader: ConfigReader, family: Family) -> None:
    architectures = reader.take("architectures")
    if architectures is not None and architectures not in [[name] for name in family.architectures]:
        reader.refuse("architectures", repr(list(family.architectures)), architectures)


def _read_sizes(reader: ConfigReader, family: Family) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in INTEGERS:
        derived = family.derived.get(key)
        values[key] = reader.integer(key, null=derived is not None)
        if derived is not None and values[key] is None:
            values[key] = derived(values)
    for key, meaning in INTEGERS_OR_NULL.items():
        value = reader.integer(key, null=True)
        values[key] = meaning if value is None else value
    values["eos_token_ids"] = reader.token_ids("eos_token_id")
    values["attention_bias"] = reader.flag("attention_bias")
    values["tie_word_embeddings"] = reader.flag("tie_word_embeddings")
    values["rms_norm_eps"] = reader.number("rms_norm_eps")
    return values


def _read_routing(reader: ConfigReader, family: Family) -> dict[str, Any]:
    return {
        "topk_method": reader.choice("topk_method", family.topk_methods),
        "scoring_func": reader.choice("scoring_func", (family.scoring_func,)),
        "norm_topk_prob": reader.flag("norm_topk_prob"),
        "routed_scaling_factor": reader.number("routed_scaling_factor"),
    }


def _read_rope(reader: ConfigReader, family: Family, values: Mapping[str, Any]) -> dict[str, Any]:
    interleave = reader.flag("rope_interleave")
    theta = reader.number("rope_theta")
    reader.expect("partial_rotary_factor", 1.0)
    key, table = "rope_parameters", reader.take("rope_parameters")
    if older := reader.take("rope_scaling"):
        key, table = "rope_scaling", older
    if not isinstance(table, dict | None):
        reader.refuse(key, "an object", table)
        table = None
    context = values["max_position_embeddings"]
    defaults = {"rope_theta": theta, "original_max_position_embeddings": context, "truncate": True}
    rope = ConfigReader(table or {}, defaults, f"{key}.")
    theta = rope.number("rope_theta")
    rope.expect("partial_rotary_factor", 1.0)
    rope.merge_alias("type", "rope_type")
    rope_type = rope.choice("rope_type", family.rope_types)
    fields: dict[str, Any] = {
        "rope_theta": theta,
        "rope_interleave": interleave,
        "rope_scaling": None,
    }
    if rope_type == "yarn":
        fields["rope_scaling"] = read_yarn(rope, context)
    elif rope_type == "longrope":
        pairs = values["qk_rope_head_dim"] // 2
        fields["rope_scaling"] = read_longrope(rope, context, pairs)
    rope.refuse_the_rest()
    reader.problems += rope.problems
    return fields
