"""Push a short text through the model while the weights pass by, to measure what int8 costs.

The text goes through twice at once: as the float32 reference, and as the bundle will be served,
with the weights as stored and activations quantized as the int8 ops do. Large matrices are never
whole in memory: a linear map asks for its rows when it needs them, a chunk at a time, and the same
chunks are what is written to the bundle.

Shapes: B windows of the text, T tokens each, D hidden, F expert width, W vocabulary. Tensors with
2B in front hold the reference's windows, then the served model's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.model import ops
from shoal.export.model.layers import Linear, RMSNorm, SwiGLU
from shoal.export.model.moe import MoE
from shoal.export.model.rope import RotaryEmbedding
from shoal.export.model.transformer import DecoderLayer
from shoal.graphs.recipes import WeightFormat

Weights = dict[str, Tensor]
Each = Callable[[int, Tensor, Tensor], None]
"""Takes (first row, float32 rows, rows as served) of a parameter."""

Pull = Callable[[str, Each], None]
"""Hands the rows of a parameter of the present layer, in order, to a function."""


class TwoStreams:
    """One text on its way through the layers, twice.

    Attributes:
        ids_BT: The text.
        num_measured: How many of its windows fidelity is measured on; the others calibrate.
        expert_ids: [2B,T,K] for each layer with experts passed, in order.
    """

    def __init__(
        self,
        config: ModelConfig,
        formats: dict[str, WeightFormat],
        ids_BT: Tensor,
        num_measured: int,
    ) -> None:
        self._config = config
        self._formats = formats
        self.ids_BT = ids_BT
        self.num_measured = num_measured
        self.expert_ids: list[Tensor] = []
        b, t = ids_BT.shape
        self._num_windows = b
        self._hidden = torch.zeros(2 * b, t, config.hidden_size)
        self._late: Tensor | None = None  # of the layer before; see DecoderLayer
        self._cos, self._sin = RotaryEmbedding(config)(torch.arange(t)[None])

    def state(self) -> dict[str, Tensor]:
        """All that the layers passed so far have left behind."""
        state = {f"expert_ids.{i}": ids.contiguous() for i, ids in enumerate(self.expert_ids)}
        if self._late is not None:
            state["late"] = self._late.contiguous()
        return {"hidden": self._hidden.contiguous(), **state}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""
        self._hidden = state["hidden"]
        self._late = state.get("late")
        layers = sum(name.startswith("expert_ids.") for name in state)
        self.expert_ids = [state[f"expert_ids.{i}"] for i in range(layers)]

    def embed(self, start: int, rows: Tensor, served: Tensor) -> None:
        """Look up the tokens from ``start`` on whose embeddings ``rows`` [..,D] are."""
        inside = (self.ids_BT >= start) & (self.ids_BT < start + len(rows))
        ids = self.ids_BT[inside] - start
        for half, table in zip(self._halves(self._hidden), (rows, served), strict=True):
            half[inside] = table[ids]

    def pass_layer(self, layer: int, reference: Weights, served: Weights, pull: Pull) -> None:
        """All of a layer but its routed experts.

        Args:
            layer: Its index.
            reference: The weights that are no matrices of linear maps, by name within the layer.
            served: The same as stored in the bundle.
            pull: Gives the rows of the others.
        """
        module = self._module(layer, reference, served, pull)
        b, t, _ = self._hidden.shape
        cache = self._hidden.new_zeros(b, t, self._config.cache_row_size)
        hidden, _ = module.attention_block(self._hidden, self._cos, self._sin, cache)
        x = module.feed_forward_norm(hidden)
        if not isinstance(module.mlp, MoE):
            self._hidden = hidden + module.mlp(x)
            if self._late is not None:
                self._hidden, self._late = self._hidden + self._late, None
            return
        self._is_late = module.dense_mlp is not None
        self._hidden = hidden if module.dense_mlp is None else hidden + module.dense_mlp(x)
        self._sparse = module.mlp
        ids, self._expert_weights = module.mlp.route(x)
        self.expert_ids.append(ids)
        beside = module.mlp.beside(x, ids, self._expert_weights)
        self._contribution = torch.zeros_like(x) if beside is None else beside
        self._expert_format = self._formats.get(f"layers.{layer}.mlp.experts.gate_up")
        self._expert_input = x
        self._quantize_served(x)
        self._activated: list[list[Tensor]] = []

    def expert_gate_up(self, start: int, rows: Tensor, served: Tensor) -> None:
        """First half of routed experts, for the tokens routed to them; ``rows`` [..,2F,D]."""
        for expert, pair in enumerate(zip(rows, served, strict=True), start):
            activated = []
            for x, ids, weight in zip(*self._expert_halves(), pair, strict=True):
                gate_up = x[(ids == expert).any(-1)] @ weight.T
                activated.append(nn.functional.silu(gate_up[..., 0::2]) * gate_up[..., 1::2])
            activated[1] = _rounded(activated[1], self._expert_format)
            self._activated.append(activated)

    def expert_down(self, start: int, rows: Tensor, served: Tensor) -> None:
        """Second half of routed experts; ``rows`` [..,D,F]."""
        ids, shares, sums = (
            self._halves(part)
            for part in (self.expert_ids[-1], self._expert_weights, self._contribution)
        )
        for expert, pair in enumerate(zip(rows, served, strict=True), start):
            for half, weight in enumerate(pair):
                chosen = ids[half] == expert
                routed = chosen.any(-1)
                share = (shares[half] * chosen).sum(-1)[routed]
                sums[half][routed] += share[:, None] * (self._activated[expert][half] @ weight.T)

    def end_layer(self) -> None:
        """Finish a layer with routed experts, all of which have been passed."""
        y = self._sparse.output_norm(self._contribution)
        if self._is_late:
            self._late = y
        else:
            self._hidden = self._hidden + y

    def head_inputs(self, norm: Tensor) -> tuple[Tensor, Tensor]:
        """What the head is applied to, [B*T,D] twice; ``norm`` [D] is the final norm's weight."""
        module = RMSNorm(self._config.hidden_size, self._config.rms_norm_eps)
        module.weight = nn.Parameter(norm, requires_grad=False)
        name = "embed_tokens" if self._config.tie_word_embeddings else "lm_head"
        stored = self._formats.get(f"{name}.weight")
        halves = self._halves(module(self._hidden))
        reference, served = (half[: self.num_measured].flatten(0, 1) for half in halves)
        return reference, _rounded(served, stored)

    def measured_expert_ids(self) -> list[Tensor]:
        """As ``expert_ids``, without the windows that calibrate."""
        return [
            torch.cat([half[: self.num_measured] for half in self._halves(ids)])
            for ids in self.expert_ids
        ]

    def calibration_inputs(self, expert: int, *, is_first: bool) -> Tensor:
        """What the windows that calibrate give a matrix of a routed expert, as served, [..,K].

        Args:
            expert: Its number in the present layer.
            is_first: Whether the matrix is the first; the second's inputs are there when all first
                ones have passed.
        """
        x, ids = (halves[1] for halves in self._expert_halves())
        routed = (ids == expert).any(-1)
        if is_first:
            return x[self.num_measured :][routed[self.num_measured :]]
        return self._activated[expert][1][int(routed[: self.num_measured].sum()) :]

    def _expert_halves(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return self._halves(self._expert_input), self._halves(self.expert_ids[-1])

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[: self._num_windows], x[self._num_windows :]

    def _quantize_served(self, x: Tensor) -> None:
        served = self._halves(x)[1]
        served.copy_(_rounded(served, self._expert_format))

    def _module(self, layer: int, reference: Weights, served: Weights, pull: Pull) -> DecoderLayer:
        with torch.device("meta"):
            module = DecoderLayer(self._config, is_moe=self._config.is_moe_layer(layer))
        for name, part in list(module.named_modules()):
            if isinstance(part, Linear):
                stored = self._formats.get(f"layers.{layer}.{name}.weight")
                rows = partial(pull, f"{name}.weight")
                parent, _, child = name.rpartition(".")
                setattr(module.get_submodule(parent), child, PulledLinear(part, rows, stored))
        for name, part in list(module.named_modules()):
            if isinstance(part, SwiGLU):
                parent, _, child = name.rpartition(".")
                setattr(module.get_submodule(parent), child, PulledSwiGLU(part))
        missing = module.load_state_dict(reference, strict=False, assign=True).missing_keys
        assert all(".experts." in f".{name}" for name in missing), f"unset: {missing}"
        parts = [(w["self_attn.w_uk"], w["self_attn.w_uv"]) for w in (reference, served)]
        module.self_attn.attend = partial(_attend_by_window, parts)
        return module


class PulledLinear(nn.Module):
    """A linear map of both streams at once, which pulls its matrix when it is applied."""

    def __init__(
        self, like: Linear, rows: Callable[[Each], None], stored: WeightFormat | None
    ) -> None:
        super().__init__()
        self.bias = like.bias
        self._num_outputs = like.weight.shape[0]
        self._rows = rows
        self._stored = stored

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [2B,T,K] to [2B,T,N]."""
        y = x.new_empty(*x.shape[:-1], self._num_outputs)
        y_reference, y_served = y.chunk(2)

        def put(columns: slice, reference: Tensor, served: Tensor) -> None:
            y_reference[..., columns] = reference
            y_served[..., columns] = served

        self._pull(x, put)
        return y if self.bias is None else y.add_(self.bias)

    def multiply(self, y: Tensor, x: Tensor) -> Tensor:
        """``y`` [2B,T,N] times what ``x`` is mapped to, in place; for maps without bias."""
        assert self.bias is None, "gated networks have no biases"
        y_reference, y_served = y.chunk(2)

        def put(columns: slice, reference: Tensor, served: Tensor) -> None:
            y_reference[..., columns] *= reference
            y_served[..., columns] *= served

        self._pull(x, put)
        return y

    def _pull(self, x: Tensor, put: Callable[[slice, Tensor, Tensor], None]) -> None:
        reference, served = x.chunk(2)
        served = _rounded(served, self._stored)
        self._rows(
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


def _rounded(x: Tensor, stored: WeightFormat | None) -> Tensor:
    """``x`` as the op sees it whose weight is stored so, None for float32."""
    if stored is None:
        return x
    return ops.fake_quantize(x, stored.block_size, stored.input_terms)


def _attend_by_window(
    parts: list[tuple[Tensor, Tensor]],
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
    num_windows = len(q_nope) // len(parts)
    y = q_nope.new_empty(*q_nope.shape[:3], w_uv.shape[1])
    for window in range(len(q_nope)):
        one = slice(window, window + 1)
        inputs = (q_nope[one], q_rope[one], latent[one], k_rope[one], cache[one])
        matrices = parts[window // num_windows]
        y[one], _ = ops.latent_attention(*inputs, *matrices, softmax_scale)
    return y, cache
