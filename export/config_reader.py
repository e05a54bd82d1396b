"""Read the keys of a config.json: take what is known, name what is not.

Three kinds of keys: those with a meaning here, those known to leave the model's numbers alone, and
all others, which are refused by name unless their value is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.export.config_keys import (
    ALIASES,
    COMMON_DEFAULTS,
    DEFAULTS,
    FAMILIES,
    HARMLESS,
    HARMLESS_QUANTIZATION,
    INTEGERS,
    INTEGERS_OR_NULL,
)
from shoal.export.fp8 import FP8_BLOCK
from shoal.graphs.errors import ConfigError


class ConfigReader:
    """Takes keys out of a JSON object and collects what is wrong with them.

    Attributes:
        problems: One clause for each key that is of a wrong type, unsupported or unknown.
    """

    def __init__(self, raw: Mapping[str, Any], prefix: str = "") -> None:
        self._left = dict(raw)
        self._prefix = prefix
        self.problems: list[str] = []

    def take(self, key: str, default: Any) -> Any:
        """The value of ``key`` as it is, or ``default`` when it is absent."""
        return self._left.pop(key, default)

    def refuse(self, key: str, expected: str, found: Any) -> None:
        """Note that ``key`` holds ``found`` where ``expected`` is needed."""
        self.problems.append(f"{self._prefix}{key}: expected {expected}, found {found!r}")

    def merge_alias(self, alias: str, key: str) -> None:
        """Treat ``alias`` as another spelling of ``key``."""
        if alias in self._left:
            value = self._left.pop(alias)
            if self._left.setdefault(key, value) != value:
                self.refuse(alias, f"the same as {key} ({self._left[key]!r})", value)

    def integer(self, key: str, default: int | None, *, null: bool = False) -> int | None:
        """A whole number; None is accepted when ``null`` is."""
        value = self.take(key, default)
        if (value is None and null) or _is_integer(value):
            return value  # type: ignore[no-any-return]
        self.refuse(key, "a whole number", value)
        return default if default is not None else 1

    def number(self, key: str, default: float | None, *, null: bool = False) -> float | None:
        """A number; None is accepted when ``null`` is."""
        value = self.take(key, default)
        if value is None and null:
            return None
        if _is_integer(value) or isinstance(value, float):
            return float(value)
        self.refuse(key, "a number", value)
        return default if default is not None else 2.0

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self.take(key, default)
        if isinstance(value, bool):
            return value
        self.refuse(key, "true or false", value)
        return default

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        """One of ``allowed``; the first when the key is absent or null."""
        value = self.take(key, None)
        if value is None:
            return allowed[0]
        if value not in allowed:
            self.refuse(key, " or ".join(map(repr, allowed)), value)
            return allowed[0]
        return str(value)

    def token_ids(self, key: str, default: int) -> tuple[int, ...]:
        """One token id, a list of them, or null for none."""
        value = self.take(key, default)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if all(_is_integer(token) and token >= 0 for token in ids):
            return tuple(ids)
        self.refuse(key, "a token id or a list of them", value)
        return ()

    def expect(self, key: str, only: Any) -> None:
        """Refuse every value of ``key`` but ``only`` and null."""
        value = self.take(key, None)
        if value is not None and value != only:
            self.refuse(key, repr(only), value)

    def refuse_the_rest(self, harmless: frozenset[str] = frozenset()) -> None:
        """Refuse the keys that nobody has taken, unless harmless or null."""
        for key in sorted(self._left):
            if key not in harmless and self._left[key] is not None:
                self.problems.append(
                    f"{self._prefix}{key}: unknown key, which may change the model's numbers; "
                    "remove it if it does not"
                )


def read_fields(raw: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """The fields of ModelConfig in a parsed config.json, and what is wrong with them.

    Args:
        raw: The JSON object.
        where: Name of the file, for messages.

    Returns:
        Values by field name, ``rope_scaling`` as a dict of YarnScaling's fields, all of the right
        type whatever the file holds; and one clause for each problem.

    Raises:
        ConfigError: The model_type is not supported: nothing else can be judged then.
    """
    reader = ConfigReader(raw)
    model_type = _read_model_type(reader, where)
    values: dict[str, Any] = {"model_type": model_type}
    values |= _read_sizes(reader, COMMON_DEFAULTS | DEFAULTS[model_type])
    values |= _read_routing(reader, model_type)
    values |= _read_rope(reader, model_type, values["max_position_embeddings"])
    values["fp8_block"] = _read_quantization(reader)
    reader.expect("hidden_act", "silu")
    reader.expect("mlp_bias", False)
    reader.expect("num_key_value_heads", values["num_attention_heads"])
    reader.expect("qk_head_dim", values["qk_nope_head_dim"] + values["qk_rope_head_dim"])
    reader.refuse_the_rest(HARMLESS)
    return values, reader.problems


def _read_quantization(reader: ConfigReader) -> tuple[int, int]:
    """Rows and columns of an FP8 matrix that share a scale."""
    table = reader.take("quantization_config", None) or {}
    if not isinstance(table, dict):
        reader.refuse("quantization_config", "an object", table)
        return FP8_BLOCK
    quantization = ConfigReader(table, prefix="quantization_config.")
    method = quantization.take("quant_method", "fp8")
    if method != "fp8":
        meaning = "'fp8' (convert the weights to bfloat16 first)"
        reader.refuse("quantization_config.quant_method", meaning, method)
        return FP8_BLOCK
    quantization.expect("fmt", "e4m3")
    block = quantization.take("weight_block_size", list(FP8_BLOCK))
    if not (isinstance(block, list) and len(block) == 2 and all(map(_is_positive, block))):
        quantization.refuse("weight_block_size", "two whole numbers from 1 on", block)
        block = FP8_BLOCK
    quantization.refuse_the_rest(HARMLESS_QUANTIZATION)
    reader.problems += quantization.problems
    return block[0], block[1]


def _is_positive(value: Any) -> bool:
    return _is_integer(value) and value > 0


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_model_type(reader: ConfigReader, where: str) -> str:
    model_type = reader.take("model_type", None)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"{where}: model_type: expected {' or '.join(FAMILIES)}, found {model_type!r}; "
            "other families are not supported"
        )
    architectures = reader.take("architectures", None)
    expected = [FAMILIES[model_type]["architecture"]]
    if architectures is not None and architectures != expected:
        reader.refuse("architectures", repr(expected), architectures)
    return model_type


def _read_sizes(reader: ConfigReader, defaults: Mapping[str, Any]) -> dict[str, Any]:
    for alias, key in ALIASES.items():
        reader.merge_alias(alias, key)
    values: dict[str, Any] = {key: reader.integer(key, defaults[key]) for key in INTEGERS}
    for key, meaning in INTEGERS_OR_NULL.items():
        value = reader.integer(key, defaults[key], null=True)
        values[key] = meaning if value is None else value
    values["eos_token_ids"] = reader.token_ids("eos_token_id", defaults["eos_token_id"])
    values["attention_bias"] = reader.flag("attention_bias", False)
    values["tie_word_embeddings"] = reader.flag("tie_word_embeddings", False)
    values["rms_norm_eps"] = reader.number("rms_norm_eps", 1e-6)
    return values


def _read_routing(reader: ConfigReader, model_type: str) -> dict[str, Any]:
    family, defaults = FAMILIES[model_type], DEFAULTS[model_type]
    norm_topk_prob = reader.flag("norm_topk_prob", defaults["norm_topk_prob"])
    if model_type == "deepseek_v2" and norm_topk_prob:
        # DeepSeek's own code then drops the scaling factor; transformers ignores the key.
        reader.refuse("norm_topk_prob", "false (deepseek_v2 has no agreed meaning of it)", True)
    factor = reader.number("routed_scaling_factor", defaults["routed_scaling_factor"])
    return {
        "topk_method": reader.choice("topk_method", family["topk_methods"]),
        "scoring_func": reader.choice("scoring_func", (family["scoring_func"],)),
        "norm_topk_prob": norm_topk_prob,
        "routed_scaling_factor": factor,
    }


def _read_rope(reader: ConfigReader, model_type: str, context: int) -> dict[str, Any]:
    interleave = reader.flag("rope_interleave", True)
    if model_type == "deepseek_v2" and not interleave:
        reader.refuse("rope_interleave", "true for deepseek_v2", False)
    theta = reader.number("rope_theta", 10000.0)
    reader.expect("partial_rotary_factor", 1.0)
    key, table = "rope_parameters", reader.take("rope_parameters", None)
    if older := reader.take("rope_scaling", None):
        key, table = "rope_scaling", older
    if not isinstance(table, dict | None):
        reader.refuse(key, "an object", table)
        table = None
    rope = ConfigReader(table or {}, prefix=f"{key}.")
    theta = rope.number("rope_theta", theta)
    rope.expect("partial_rotary_factor", 1.0)
    rope.merge_alias("type", "rope_type")
    rope_type = rope.choice("rope_type", ("default", "yarn"))
    scaling = _read_yarn(rope, context) if rope_type == "yarn" else None
    rope.refuse_the_rest()
    reader.problems += rope.problems
    return {"rope_theta": theta, "rope_interleave": interleave, "rope_scaling": scaling}


def _read_yarn(rope: ConfigReader, context: int) -> dict[str, Any]:
    original = rope.integer("original_max_position_embeddings", None, null=True) or context
    if original < 1:
        rope.refuse("original_max_position_embeddings", "at least 1", original)
        original = 1
    factor = rope.number("factor", None, null=True)
    fields: dict[str, Any] = {
        "factor": context / original if factor is None else factor,
        "original_max_position_embeddings": original,
        "beta_fast": rope.number("beta_fast", None, null=True) or 32.0,
        "beta_slow": rope.number("beta_slow", None, null=True) or 1.0,
        "mscale": rope.number("mscale", None, null=True),
        "mscale_all_dim": rope.number("mscale_all_dim", None, null=True),
        "truncate": rope.flag("truncate", True),
        "attention_factor": rope.number("attention_factor", None, null=True),
    }
    if not fields["factor"] >= 1:
        rope.refuse("factor", "a number of at least 1", fields["factor"])
    if not 0 < fields["beta_slow"] <= fields["beta_fast"]:
        rope.refuse(
            "beta_slow", f"above 0, up to beta_fast {fields['beta_fast']}", fields["beta_slow"]
        )
    for key in ("mscale", "mscale_all_dim", "attention_factor"):
        if fields[key] is not None and fields[key] < 0:
            rope.refuse(key, "at least 0", fields[key])
    return fields
