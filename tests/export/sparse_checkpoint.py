"""Checkpoints of any size that take no room: every weight is a hole in a sparse file.

``python -m tests.export.sparse_checkpoint FOLDER`` makes one with DeepSeek-V3's real shapes: one
dense layer, one with all 256 experts, embedding and head; 27 GB by its size, a few kB on disk.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shoal.export.checkpoint.safetensors_files import ITEM_BITS
from shoal.export.checkpoint.tensor_names import wanted_tensors
from shoal.export.checkpoint.weight_files import INDEX_FILE
from shoal.export.config.model_config import ModelConfig

V3 = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
    "max_position_embeddings": 4096,
}
SHARD_BYTES = 5 << 30


def write_sparse(folder: Path, raw_config: Mapping[str, Any], dtype: str = "BF16") -> int:
    """Write a checkpoint of zeros in shards; returns the bytes that its tensors would take."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(raw_config)))
    shapes = wanted_tensors(ModelConfig.from_hf(raw_config))
    places: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_shards(shapes, dtype)):
        file = f"model-{number:05}.safetensors"
        total += _write_shard(folder / file, shard, dtype)
        places |= dict.fromkeys(shard, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return total


def _shards(
    shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        shard[name] = shape
        size += _size(shape, dtype)
        if size >= SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    yield shard


def _write_shard(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> int:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _size(shape, dtype)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)
    return end


def _size(shape: tuple[int, ...], dtype: str) -> int:
    count = 1
    for length in shape:
        count *= length
    return count * ITEM_BITS[dtype] // 8


if __name__ == "__main__":
    print(f"{write_sparse(Path(sys.argv[1]), V3) / 1e9:.1f} GB")
