"""The multi-token-prediction module of the trained checkpoint against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export.oracle import load
from tests.tolerances import PARITY
from torch import Tensor

from shoal.export.model.load import load_model
from shoal.export.model.transformer import CausalLM
from shoal.export.model.wiring import grow_state, mtp_blocks

pytestmark = pytest.mark.dependencies

TINY = Path(__file__).parents[3] / "checkpoints" / "tiny-v3"


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return load_model(TINY)


@pytest.fixture(scope="module")
def hidden_and_ids(model: CausalLM) -> tuple[Tensor, Tensor]:
    """Hidden states of a context, and its tokens."""
    input_ids = torch.randint(3, 4096, (1, 25), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        hidden, _, _ = model(input_ids, torch.arange(25)[None], model.grow_states(None, 25))
    return hidden, input_ids


def draft(model: CausalLM, hidden: Tensor, next_ids: Tensor, position_ids: Tensor) -> Tensor:
    state = grow_state(mtp_blocks(model.config), None, next_ids.shape[1])
    with torch.inference_mode():
        cos, sin = model.rotary(position_ids)
        out: Tensor = model.mtp[0](model.embed_tokens(next_ids), hidden, cos, sin, state)[0]
    return out


def test_the_module_gives_the_hidden_states_of_transformers(
    model: CausalLM, hidden_and_ids: tuple[Tensor, Tensor]
) -> None:
    from transformers.cache_utils import DynamicCache
    from transformers.modeling_layers import MtpModel

    oracle = load(TINY)
    oracle._keys_to_ignore_on_load_unexpected = [r"model\.layers\.5\..*"]
    module: Any = MtpModel.from_pretrained(oracle)
    module.eval()
    hidden, input_ids = hidden_and_ids
    next_ids, position_ids = input_ids[:, 1:], torch.arange(1, 25)[None]
    with torch.inference_mode():
        expected = module.forward_layer(
            0, hidden[:, :-1], position_ids, DynamicCache(), input_ids=next_ids
        )
    ours = draft(model, hidden[:, :-1], next_ids, position_ids)
    error = (ours - expected).abs().max().item()
    assert error <= PARITY, f"hidden states differ by {error:.3g} at most"


def test_drafting_in_two_calls_equals_one(
    model: CausalLM, hidden_and_ids: tuple[Tensor, Tensor]
) -> None:
    hidden, input_ids = hidden_and_ids
    whole = draft(model, hidden[:, :-1], input_ids[:, 1:], torch.arange(24)[None])
    parts, state = [], None
    with torch.inference_mode():
        for part in (slice(0, 20), slice(20, 24)):
            ids = input_ids[:, 1:][:, part]
            state = grow_state(mtp_blocks(model.config), state, ids.shape[1])
            cos, sin = model.rotary(torch.arange(24)[None, part])
            out, state, _ = model.mtp[0](
                model.embed_tokens(ids), hidden[:, :-1][:, part], cos, sin, state
            )
            parts.append(out)
    error = (torch.cat(parts, dim=1) - whole).abs().max().item()
    assert error <= PARITY, f"hidden states differ by {error:.3g} at most"
