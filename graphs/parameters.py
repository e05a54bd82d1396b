"""The one grammar of parameter names: what the tensors of weights.bin are called.

    embed_tokens.weight, norm.weight, lm_head.weight    of the model as a whole
    layers.{l}.<part>                                   of a decoder layer
    mtp.{k}.<part>                                      of an MTP module
    mtp.{k}.layer.<part>                                of the decoder layer inside it

``_scales`` behind a name means the block scales of that parameter. The tables below list all parts;
whatever another family adds, such as the parts of a layer with a state of another kind, is one more
line in them. Nothing else in the project takes names apart. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache

from shoal.graphs.errors import BundleError

KINDS = (
    "embedding",
    "head",
    "experts",
    "shared_experts",
    "attention_latent",
    "attention_output",
    "attention_input",
    "dense",
    "other",
)
"""The kinds of weights that recipes tell apart; ``other`` joins the inputs of an MTP module."""

_Parts = Mapping[str, str | None]  # by name; None stays float32 whatever the recipe

_OF_MODEL: _Parts = {
    "embed_tokens.weight": "embedding",
    "norm.weight": None,
    "lm_head.weight": "head",
}
_OF_MTP: _Parts = {
    "enorm.weight": None,
    "hnorm.weight": None,
    "eh_proj.weight": "other",
    "norm.weight": None,
}
_NORMS: _Parts = {
    "input_layernorm.weight": None,
    "post_attention_layernorm.weight": None,
}
_LATENT_ATTENTION: _Parts = {
    "self_attn.q_proj.weight": "attention_input",
    "self_attn.q_a_proj.weight": "attention_input",
    "self_attn.q_a_proj.bias": None,
    "self_attn.q_a_layernorm.weight": None,
    "self_attn.q_b_proj.weight": "attention_input",
    "self_attn.kv_a_proj_with_mqa.weight": "attention_input",
    "self_attn.kv_a_proj_with_mqa.bias": None,
    "self_attn.kv_a_layernorm.weight": None,
    "self_attn.w_uk": "attention_latent",
    "self_attn.w_uv": "attention_latent",
    "self_attn.o_proj.weight": "attention_output",
    "self_attn.o_proj.bias": None,
}
_DENSE: _Parts = {
    f"{module}.{matrix}.weight": "dense"
    for module in ("mlp", "dense_mlp")  # instead of experts, and beside them
    for matrix in ("gate_proj", "up_proj", "down_proj")
}
_EXPERTS: _Parts = {
    # The router stays float32: to choose another expert is no rounding error.
    "mlp.gate.weight": None,
    "mlp.gate.e_score_correction_bias": None,
    "mlp.post_mlp_layernorm.weight": None,
    "mlp.shared_experts.gate_proj.weight": "shared_experts",
    "mlp.shared_experts.up_proj.weight": "shared_experts",
    "mlp.shared_experts.down_proj.weight": "shared_experts",
    "mlp.experts.gate_up": "experts",
    "mlp.experts.down": "experts",
}
_OF_LAYER: _Parts = {**_NORMS, **_LATENT_ATTENTION, **_DENSE, **_EXPERTS}


class Place(Enum):
    """What a parameter is a part of: what its name begins with, and which parts there may be."""

    MODEL = ("", _OF_MODEL)
    LAYER = ("layers.{}.", _OF_LAYER)
    MTP = ("mtp.{}.", _OF_MTP)
    MTP_LAYER = ("mtp.{}.layer.", _OF_LAYER)

    def __init__(self, form: str, parts: _Parts) -> None:
        self.parts = parts
        self._form = form

    def prefix(self, index: int = 0) -> str:
        """What names begin with in layer or MTP module ``index``."""
        return self._form.format(index)


_PLACES = {
    (None, None): Place.MODEL,
    ("layers", None): Place.LAYER,
    ("mtp", None): Place.MTP,
    ("mtp", "layer."): Place.MTP_LAYER,
}
_GATES = (".gate_proj.weight", ".gate_up")
_SCALES = "_scales"
_INDICES = range(100_000)  # up to the five digits of the pattern
_NAME = re.compile(
    r"(?:(layers|mtp)\.(0|[1-9][0-9]{0,4})\.(layer\.)?)?"  # place and index
    rf"(.+?)({_SCALES})?"  # part
)
_REMEMBERED = 1 << 13  # names: more than the largest model has


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """A parameter of a bundle, or the block scales of one.

    ``Parameter.parse(name)`` and ``str(parameter)`` are inverse to each other.

    Attributes:
        place: what it is a part of.
        index: of the layer or the MTP module, 0 for the model as a whole.
        part: its name there, for example ``self_attn.o_proj.weight``.
        is_scales: whether it is the block scales, not the parameter itself.
    """

    place: Place
    index: int = 0
    part: str
    is_scales: bool = False

    def __post_init__(self) -> None:
        indices = _INDICES[:1] if self.place is Place.MODEL else _INDICES
        if self.index not in indices or self.part not in self.place.parts:
            raise _unknown(str(self))
        if self.is_scales and self.kind is None:
            raise _unknown(str(self))

    @staticmethod
    def parse(name: str) -> Parameter:
        """The parameter of that name.

        Raises:
            BundleError: no parameter is called so.
        """
        return _parse(name)

    def __str__(self) -> str:
        return self.place.prefix(self.index) + self.part + (_SCALES if self.is_scales else "")

    @property
    def scales(self) -> Parameter:
        """Its block scales."""
        return replace(self, is_scales=True)

    @property
    def kind(self) -> str | None:
        """What recipes choose the format by; None for what stays float32."""
        return self.place.parts[self.part]

    @property
    def section(self) -> str:
        """The piece of the model it belongs to: ``embed_tokens``, ``layers.3``, ``mtp.0`` .."""
        if self.place is Place.MODEL:
            return self.part.partition(".")[0]
        return f"{'layers' if self.place is Place.LAYER else 'mtp'}.{self.index}"

    @property
    def layer(self) -> int | None:
        """Its decoder layer in the main model, None if it is in none of them."""
        return self.index if self.place is Place.LAYER else None

    @property
    def is_mtp(self) -> bool:
        """Whether an MTP module has it, which is not read before drafting."""
        return self.place in (Place.MTP, Place.MTP_LAYER)

    @property
    def is_routed_experts(self) -> bool:
        """Whether it holds one matrix of all routed experts, of which a token reads some."""
        return self.kind == "experts"

    @property
    def is_gate(self) -> bool:
        """Whether its rows are gates of feed-forward networks, with up rows between in experts."""
        return self.part.endswith(_GATES) and not self.is_scales


EMBEDDING = Parameter(place=Place.MODEL, part="embed_tokens.weight")
"""The embedding, which is also the head where there is no ``HEAD``."""

FINAL_NORM = Parameter(place=Place.MODEL, part="norm.weight")
HEAD = Parameter(place=Place.MODEL, part="lm_head.weight")


@lru_cache(_REMEMBERED)
def _parse(name: str) -> Parameter:
    match = _NAME.fullmatch(name)
    if match is None:
        raise _unknown(name)
    module, index, layer, part, scales = match.groups()
    place = _PLACES.get((module, layer))
    if place is None:
        raise _unknown(name)
    return Parameter(place=place, index=int(index or 0), part=part, is_scales=scales is not None)


def _unknown(name: str) -> BundleError:
    shown = ascii(name if len(name) <= 80 else name[:77] + "...")
    return BundleError(
        f"{shown} is no name of a parameter that this shoal knows; upgrade shoal or re-export"
    )
