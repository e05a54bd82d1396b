"""What a form of a bundle takes of memory (measured against in tests/runtime/engine/test_fit.py).

    mapped      weights that are read where the file is mapped: shared, dropped when memory is short
    copied      weights that onnxruntime's own kernels repack into memory when they are loaded
    cache       the latent cache: so much per token of the context
    scratch     intermediate values of the longest step, estimated from above

All but the first is memory that only this process uses and that must exist. Native kernels copy
nothing, so with them a model larger than memory runs too: from the disk, and slowly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shoal.graphs.cache_types import CacheType
from shoal.graphs.footprint import cache_token_bytes, loaded_weight_bytes, mapped_weight_bytes
from shoal.graphs.manifest import Manifest, ModelInfo, TensorInfo
from shoal.graphs.parameters import Parameter
from shoal.runtime.engine.step import LARGEST_CHUNK, SCORE_BYTES, SMALLEST_CHUNK

Form = Literal["native", "portable"]

_SESSION_BYTES = 8 << 20  # what onnxruntime keeps for two graphs, ...
_LAYER_BYTES = 1 << 20  # ... and for each layer in them
_ROW_COPIES = 2  # latents, and latents with rope keys
_SCORE_COPIES = 3  # scores, masked scores and shares of attention


@dataclass(frozen=True, kw_only=True)
class Need:
    """Memory that one form of a bundle takes."""

    form: Form
    model: ModelInfo
    mapped_bytes: int
    loading_bytes: int  # mapped while it is being copied
    copied_bytes: int
    token_bytes: int  # latent cache
    activation_bytes: int  # of one token
    attention_weight_bytes: int  # of one layer, in float32
    token_read_bytes: int  # weights that a token reads
    float_row_bytes: int  # a token in one layer's cache as floats, where those must be made

    def cache_bytes(self, tokens: int) -> int:
        """The latent cache of a context."""
        return tokens * self.token_bytes

    def scratch_bytes(self, tokens: int) -> int:
        """Intermediate values while a context of this length is read."""
        chunk = min(tokens, LARGEST_CHUNK)
        fixed = session_bytes(self.model.num_hidden_layers)
        scratch = fixed + chunk * self.activation_bytes + self.attention_weight_bytes
        if self.form == "portable":
            row_bytes = 4 * self.model.num_attention_heads * tokens
            longest = max(SCORE_BYTES, SMALLEST_CHUNK * row_bytes)
            scratch += _SCORE_COPIES * min(longest, chunk * row_bytes)
            scratch += _ROW_COPIES * tokens * self.float_row_bytes
        return scratch

    def anonymous_bytes(self, tokens: int) -> int:
        """Memory that only this process uses, with a context of this length."""
        return self.copied_bytes + self.cache_bytes(tokens) + self.scratch_bytes(tokens)

    def longest_context(self, free_bytes: int) -> int:
        """Tokens of the longest context that fits, at most the model's own limit; 0 if none."""
        fits, too_long = 0, self.model.max_position_embeddings + 1
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self.anonymous_bytes(middle) <= free_bytes:
                fits = middle
            else:
                too_long = middle
        return fits


def bundle_need(manifest: Manifest, form: Form, cache_type: CacheType = "float32") -> Need:
    """What one form of a bundle takes."""
    model, tensors = manifest.model, manifest.tensors
    heads, head_dims = model.num_attention_heads, model.qk_nope_head_dim + model.v_head_dim
    portable = form == "portable"
    row_bytes = 4 * (model.kv_lora_rank + model.qk_rope_head_dim)
    return Need(
        form=form,
        model=model,
        mapped_bytes=mapped_weight_bytes(tensors, native=not portable),
        loading_bytes=max((info.size for info in tensors.values()), default=0) if portable else 0,
        copied_bytes=loaded_weight_bytes(tensors) if portable else 0,
        token_bytes=cache_token_bytes(
            model.kv_lora_rank, model.qk_rope_head_dim, model.num_hidden_layers, cache_type
        ),
        activation_bytes=4 * _activation_values(model, tensors),
        attention_weight_bytes=4 * heads * head_dims * model.kv_lora_rank,
        token_read_bytes=manifest.token_read_bytes,
        float_row_bytes=0 if cache_type == "float32" else row_bytes,
    )


def session_bytes(num_layers: int) -> int:
    """What onnxruntime keeps for a graph, or for decoder and head, with so many layers."""
    return _SESSION_BYTES + num_layers * _LAYER_BYTES


def _activation_values(model: ModelInfo, tensors: Mapping[str, TensorInfo]) -> int:
    """Intermediate values of one token, from above: a layer's widest part and its queries."""
    widths = dict.fromkeys(("dense", "shared_experts", "experts"), 0)
    for name, info in tensors.items():
        parameter = Parameter.parse(name)
        if parameter.is_gate and parameter.kind is not None:
            width = info.shape[1] // 2 if parameter.is_routed_experts else info.shape[0]
            widths[parameter.kind] = max(widths[parameter.kind], width)
    hidden = model.hidden_size
    sparse = model.num_experts_per_tok * (hidden + 3 * widths["experts"])
    sparse += 3 * widths["shared_experts"]
    queries = 2 * model.num_attention_heads * (model.kv_lora_rank + model.qk_rope_head_dim)
    return 8 * hidden + max(3 * widths["dense"], sparse) + queries
