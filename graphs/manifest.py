"""manifest.json: what a bundle is, as frozen dataclasses, and how it is written.

It is read, and checked in full, by ``manifest_reader.read_manifest``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from shoal.graphs.contract import FORMAT_VERSION, OP_SET_VERSION
from shoal.graphs.recipes import WeightFormat


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the runtime must know of the model. Names follow the Hugging Face config."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    max_position_embeddings: int
    moe_layers: tuple[int, ...]  # indices of the layers with routed experts
    n_routed_experts: int  # 0 without MoE layers; ids from here on are experts without weights
    num_experts_per_tok: int  # 0 without MoE layers
    num_mtp_layers: int  # exported MTP modules: 0 or 1
    parameters: int  # distinct weights, MTP module included
    active_parameters: int  # weights that take part in one token of the main model
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor of weights.bin."""

    dtype: str  # "uint8", "uint4" (two values in a byte) or "float32"
    shape: tuple[int, ...]
    offset: int  # bytes, a multiple of contract.WEIGHT_ALIGNMENT_BYTES
    size: int  # bytes


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One file of the bundle."""

    size: int  # bytes
    sha256: str  # 64 lower-case hexadecimal digits


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of manifest.json."""

    format_version: int = FORMAT_VERSION
    op_set_version: int = OP_SET_VERSION
    shoal_version: str
    weights: str  # name of a recipe, or "fp32"; see recipes.py
    model: ModelInfo
    graphs: dict[str, str]  # role (decoder, head, mtp) -> file name
    files: dict[str, FileInfo]  # every file but the manifest itself
    tensors: dict[str, TensorInfo]
    token_read_bytes: int  # bytes of weights.bin that one decoded token reads
    config: dict[str, Any]  # the checkpoint's config.json, as it was
    fidelity: dict[str, Any] | None = None  # see export/fidelity/head_comparison.py
    formats: dict[str, WeightFormat] = field(default_factory=dict)  # by kind of weight
    notes: tuple[str, ...] = field(default=())  # what the exporter wants the user to know

    @property
    def is_quantized(self) -> bool:
        """Whether weights are stored in 8 or 4 bits; else all are float32."""
        return bool(self.formats)

    def to_json(self) -> str:
        """The manifest as JSON text, with its own checksum as the last key."""
        content = asdict(self)
        content["manifest_sha256"] = checksum(content)
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def checksum(content: dict[str, Any]) -> str:
    """sha256 of the manifest's content without the checksum itself, in canonical JSON."""
    bare = {key: value for key, value in content.items() if key != "manifest_sha256"}
    canonical = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
