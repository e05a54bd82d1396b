"""The tensors of a GGUF file under the names and in the form of a Hugging Face checkpoint.

Experts, which lie in stacks, are matrices of their own, and what llama.cpp has split off kv_b_proj
(each head's key part transposed) is put together again. Rotary rows are in the published order:
llama.cpp does not permute them for this architecture.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.export.checkpoint.gguf.file import TYPES, GgufModel, GgufTensor
from shoal.export.checkpoint.stored_tensors import TensorHeader
from shoal.export.config.keys import FP8_BLOCK
from shoal.export.config.model_config import ModelConfig
from shoal.graphs.errors import CheckpointError
from shoal.graphs.message_parts import shortened

_GLOBAL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn_kv_b.weight": "self_attn.kv_b_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_shexp.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_experts.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_experts.down_proj.weight",
}
_EXPERTS = re.compile(r"ffn_(gate|up|down)_exps\.weight")
_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.(.+)")  # one way to write a number
_KEY_PART, _VALUE_PART = "attn_k_b.weight", "attn_v_b.weight"
_KEY_VALUE = "self_attn.kv_b_proj.weight"


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """A tensor of the checkpoint: rows of one in the file, from ``first`` on."""

    tensor: GgufTensor
    first: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _KeyValue:
    """A kv_b_proj, made of keys [H,C,N] and values [H,V,C]."""

    keys: GgufTensor
    values: GgufTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """[H(N+V),C]."""
        heads, rank, key_size = self.keys.shape
        return heads * (key_size + self.values.shape[1]), rank


class GgufTensors:
    """The tensors of a GGUF file; see ``StoredTensors`` for what it has."""

    readable = tuple(TYPES.values())
    fp8_block = FP8_BLOCK  # there are none

    def __init__(self, model: GgufModel, config: ModelConfig) -> None:
        """List the tensors of a file.

        Args:
            model: the file's header.
            config: what it says of the model, which bounds how many experts are listed.

        Raises:
            CheckpointError: a type that cannot be read, or a stack of another number of experts.
        """
        others = {name: t.type for name, t in model.tensors.items() if t.type not in self.readable}
        if others:
            name, kind = next(iter(others.items()))
            raise CheckpointError(
                f"{model.path}: {len(others)} tensors such as {shortened(name)} ({kind}) are of "
                f"types that cannot be read; choose a file of {', '.join(self.readable)}"
            )
        self._places = dict(_places(model, config))
        self.path = model.path
        self.headers = {name: _header(place) for name, place in self._places.items()}

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """See ``StoredTensors``."""
        place = self._places[name]
        if isinstance(place, _KeyValue):
            values = _key_value_rows(place, start, stop)
        elif len(place.shape) == 1:
            values = _read_rows(place.tensor, 0, 1)[0, start:stop]
        else:
            values = _read_rows(place.tensor, place.first + start, place.first + stop)
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{self.headers[name].file}: {name}: expected finite values, found NaN or "
                "infinity; download the file again"
            )
        return torch.from_numpy(values)


def _header(place: _Rows | _KeyValue) -> TensorHeader:
    tensor = place.keys if isinstance(place, _KeyValue) else place.tensor
    return TensorHeader(
        file=tensor.file, dtype=tensor.type, shape=place.shape, offset=tensor.offset
    )


def _places(model: GgufModel, config: ModelConfig) -> Iterator[tuple[str, _Rows | _KeyValue]]:
    for name, tensor in model.tensors.items():
        match = _LAYER.fullmatch(name)
        if match is None or int(match[1]) >= config.num_hidden_layers:
            yield _GLOBAL.get(name, name), _whole(tensor)
            continue
        prefix, part = f"model.layers.{match[1]}.", match[2]
        experts = _EXPERTS.fullmatch(part)
        if experts is not None and len(tensor.shape) == 3:
            count, rows, _ = tensor.shape
            if count != config.n_routed_experts:  # before a list of them takes gigabytes
                raise CheckpointError(
                    f"{model.path}: {shortened(name)}: expected {config.n_routed_experts} experts "
                    f"as in expert_count, found {count}; download the file again"
                )
            for expert in range(count):
                yield (
                    f"{prefix}mlp.experts.{expert}.{experts[1]}_proj.weight",
                    _Rows(tensor=tensor, first=expert * rows, shape=tensor.shape[1:]),
                )
        elif part == _KEY_PART and len(tensor.shape) == 3:
            values = model.tensors.get(f"blk.{match[1]}.{_VALUE_PART}")
            if values is not None and len(values.shape) == 3:
                yield prefix + _KEY_VALUE, _KeyValue(keys=tensor, values=values)
        elif part != _VALUE_PART:
            yield prefix + _IN_LAYER.get(part, part), _whole(tensor)


def _whole(tensor: GgufTensor) -> _Rows:
    return _Rows(tensor=tensor, first=0, shape=tensor.shape)


def _key_value_rows(place: _KeyValue, start: int, stop: int) -> NDArray[np.float32]:
    _, rank, key_size = place.keys.shape
    value_size = place.values.shape[1]
    size = key_size + value_size
    first, last = start // size, -(-stop // size)
    keys = _read_rows(place.keys, first * rank, last * rank).reshape(-1, rank, key_size)
    values = _read_rows(place.values, first * value_size, last * value_size)
    both = np.concatenate(
        [keys.transpose(0, 2, 1), values.reshape(-1, value_size, rank)], axis=1
    ).reshape(-1, rank)
    return np.ascontiguousarray(both[start - first * size : stop - first * size])


def _read_rows(tensor: GgufTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of a tensor, whose axes before the last are taken as one; [stop - start, K]."""
    size = (stop - start) * tensor.row_bytes
    try:
        with tensor.file.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, tensor.offset + start * tensor.row_bytes)
    except OSError as error:
        raise CheckpointError(
            f"{tensor.file}: cannot be read: {error.strerror}; check the disk"
        ) from error
    if len(data) != size:
        raise CheckpointError(
            f"{tensor.file}: ended within a tensor, it has changed since it was opened; leave it "
            "alone during an export"
        )
    return _decoded(data, tensor.type).reshape(stop - start, tensor.shape[-1])


def _decoded(data: bytes, kind: str) -> NDArray[np.float32]:
    if kind == "Q8_0":
        blocks = np.frombuffer(data, np.dtype([("scale", "<f2"), ("codes", "i1", 32)]))
        scaled: NDArray[np.float32] = blocks["codes"] * blocks["scale"].astype(np.float32)[:, None]
        return scaled
    if kind == "BF16":
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32)
    return np.frombuffer(data, "<f2" if kind == "F16" else "<f4").astype(np.float32)
