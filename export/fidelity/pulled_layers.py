"""Layers of the two streams: every large matrix is pulled through in rows when it is applied.

A pulled layer is a ``DecoderLayer`` with other modules in it. They compute both streams at once:
the float32 reference, and the model as it is served, with weights as they are stored and
activations rounded as the int8 ops do. A matrix is asked for in the order of weights.bin, is never
whole in memory, and is written to the bundle at the same time.

Shapes: B windows of the text, T tokens each, D hidden, K inputs and N outputs of a linear map.
Tensors with 2B in front hold the reference's windows, then the served model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.fidelity.rounding import rounded
from shoal.export.fidelity.sparse_layer import PulledMoE
from shoal.export.model import ops
from shoal.export.model.decoder_layer import DecoderLayer
from shoal.export.model.layers import Linear, SwiGLU
from shoal.export.model.mla import MultiHeadLatentAttention
from shoal.export.model.moe import MoE
from shoal.export.model.wiring import Blocks
from shoal.export.transfer import Each, Encode
from shoal.graphs.recipes import WeightFormat

_Part = TypeVar("_Part", bound=nn.Module)


class LayerWeights(Protocol):
    """Gives the parameters of one layer, by their names in it."""

    def whole(self, name: str) -> tuple[Tensor, Tensor]:
        """A small parameter, as float32 and as served."""

    def pull(self, name: str, each: Each, encode: Encode | None = None) -> None:
        """Move a parameter into the bundle and show its rows to ``each`` on the way.

        What is pulled is pulled once, in the order of weights.bin.
        """


def pulled_layer(
    config: ModelConfig,
    blocks: Blocks,
    weights: LayerWeights,
    formats: Mapping[str, WeightFormat],
    num_measured: int,
) -> DecoderLayer:
    """A layer that runs both streams.

    Args:
        config: of the model.
        blocks: of the layer.
        weights: of the layer.
        formats: of its weights that are not float32, by their names in it.
        num_measured: windows of the text that fidelity is measured on; the others calibrate.
    """
    with torch.device("meta"):
        layer = DecoderLayer(config, blocks)
        for name, _ in _parts(layer, MoE):
            experts = f"{name}.experts"
            moe = PulledMoE(config, experts, weights.pull, formats, num_measured)
            layer.set_submodule(name, moe)
    for name, linear in _parts(layer, Linear):
        matrix = f"{name}.weight"
        pulled = PulledLinear(linear, partial(weights.pull, matrix), formats.get(matrix))
        layer.set_submodule(name, pulled)
    for name, network in _parts(layer, SwiGLU):
        layer.set_submodule(name, PulledSwiGLU(network))
    small = {name: weights.whole(name) for name in layer.state_dict()}
    layer.load_state_dict({name: reference for name, (reference, _) in small.items()}, assign=True)
    quantized = small.keys() & formats.keys()
    for name, attention in _parts(layer, MultiHeadLatentAttention):
        keys, values = f"{name}.w_uk", f"{name}.w_uv"
        both = list(zip(small[keys], small[values], strict=True))
        attention.attend = partial(_attend_by_window, both)
        quantized -= {keys, values}
    assert not quantized, f"{sorted(quantized)} would be applied in float32, which is not served"
    return layer


def _parts(layer: nn.Module, kind: type[_Part]) -> list[tuple[str, _Part]]:
    return [(name, part) for name, part in layer.named_modules() if type(part) is kind]


class PulledLinear(nn.Module):
    """A linear map of both streams at once, which pulls its matrix when it is applied."""

    def __init__(
        self, like: Linear, pull: Callable[[Each], None], stored: WeightFormat | None
    ) -> None:
        super().__init__()
        self.bias = like.bias
        self._num_outputs = like.weight.shape[0]
        self._pull = pull
        self._stored = stored

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [2B,T,K] to [2B,T,N]."""
        y = x.new_empty(*x.shape[:-1], self._num_outputs)
        y_reference, y_served = y.chunk(2)

        def put(columns: slice, reference: Tensor, served: Tensor) -> None:
            y_reference[..., columns] = reference
            y_served[..., columns] = served

        self._each_product(x, put)
        return y if self.bias is None else y.add_(self.bias)

    def multiply(self, y: Tensor, x: Tensor) -> Tensor:
        """``y`` [2B,T,N] times what ``x`` is mapped to, in place; for maps without bias."""
        assert self.bias is None, "gated networks have no biases"
        y_reference, y_served = y.chunk(2)

        def put(columns: slice, reference: Tensor, served: Tensor) -> None:
            y_reference[..., columns] *= reference
            y_served[..., columns] *= served

        self._each_product(x, put)
        return y

    def _each_product(self, x: Tensor, put: Callable[[slice, Tensor, Tensor], None]) -> None:
        reference, served = x.chunk(2)
        served = rounded(served, self._stored)
        self._pull(
            lambda start, rows, served_rows: put(
                slice(start, start + len(rows)), reference @ rows.T, served @ served_rows.T
            )
        )


class PulledSwiGLU(nn.Module):
    """A gated network whose inner values, the largest of a layer, are in memory once."""

    def __init__(self, like: SwiGLU) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = like.gate_proj, like.up_proj, like.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x`` [2B,T,D]."""
        inner = nn.functional.silu(self.gate_proj(x), inplace=True)
        assert isinstance(self.up_proj, PulledLinear), "linear maps are replaced first"
        y: Tensor = self.down_proj(self.up_proj.multiply(inner, x))
        return y


def _attend_by_window(
    both: list[tuple[Tensor, Tensor]],
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    cache: Tensor,
    _w_uk: Tensor,
    w_uv: Tensor,
    softmax_scale: float,
) -> tuple[Tensor, Tensor]:
    """``ops.latent_attention`` with each stream's own matrices, one window at a time.

    The scores of one window are large enough.
    """
    num_windows = len(q_nope) // len(both)
    y = q_nope.new_empty(*q_nope.shape[:3], w_uv.shape[1])
    for window in range(len(q_nope)):
        one = slice(window, window + 1)
        inputs = (q_nope[one], q_rope[one], latent[one], k_rope[one], cache[one])
        matrices = both[window // num_windows]
        y[one], _ = ops.latent_attention(*inputs, *matrices, softmax_scale)
    return y, cache
