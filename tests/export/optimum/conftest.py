"""The float32 bundle behind transformers' interface, and transformers' own model beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, DeepseekV3ForCausalLM

from shoal.export.optimum import ShoalForCausalLM

PROMPTS = ["And God said", "It is a truth universally acknowledged, that", "The"]


@pytest.fixture(scope="package")
def oracle(tiny_checkpoint: Path) -> Any:
    return DeepseekV3ForCausalLM.from_pretrained(
        tiny_checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="package")
def model(fp32_bundle: Path) -> ShoalForCausalLM:
    return ShoalForCausalLM.from_pretrained(fp32_bundle, threads=1)


@pytest.fixture(scope="package")
def tokenizer(fp32_bundle: Path) -> Any:
    return AutoTokenizer.from_pretrained(fp32_bundle, padding_side="left")


@pytest.fixture(scope="package")
def batch(tokenizer: Any) -> Any:
    """Three prompts of different lengths, padded on the left."""
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    assert 0 < batch["attention_mask"].sum() < batch["attention_mask"].numel()
    return batch


@pytest.fixture(scope="package")
def right_padded(tokenizer: Any) -> Any:
    """The same prompts, padded on the right."""
    return tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="right")
