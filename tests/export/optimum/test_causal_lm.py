"""Bundles behind the interface of transformers, against transformers' own model."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export.optimum.conftest import PROMPTS
from tests.tolerances import BUNDLE_LOGITS
from transformers import DeepseekV3Config, pipeline

from shoal.export.optimum import ShoalForCausalLM, causal_lm
from shoal.export.optimum.cache_name import CACHE
from shoal.export.optimum.context_cache import ContextLayer
from shoal.graphs.errors import InputError
from shoal.runtime import open_bundle

pytestmark = pytest.mark.dependencies

LENGTH = 24


def test_greedy_tokens_are_those_of_shoal(model: ShoalForCausalLM, fp32_bundle: Path) -> None:
    plain = open_bundle(fp32_bundle, threads=1)
    ids = plain.encode(PROMPTS[1])
    found = model.generate(torch.tensor([ids]), max_new_tokens=LENGTH, do_sample=False)
    assert found[0].tolist() == ids + list(plain.generate(ids, max_new_tokens=LENGTH))


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "use_cache": False},
        {"do_sample": True, "temperature": 0.8, "top_p": 0.9},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
        {"num_beams": 2, "do_sample": True, "repetition_penalty": 1.3},
    ],
)
def test_generated_tokens_are_those_of_transformers(
    options: dict[str, Any], model: ShoalForCausalLM, oracle: Any, batch: Any
) -> None:
    torch.manual_seed(5)
    found = model.generate(**batch, max_new_tokens=LENGTH, **options)
    torch.manual_seed(5)
    assert torch.equal(found, oracle.generate(**batch, max_new_tokens=LENGTH, **options))


def test_beams_of_one_prompt_share_its_computation(
    model: ShoalForCausalLM, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    one_row = ContextLayer._read_row

    def counted(self: Any, row: int, early: list[int], late: list[int]) -> torch.Tensor:
        read.append(len(early) + len(late))
        return one_row(self, row, early, late)

    monkeypatch.setattr(ContextLayer, "_read_row", counted)
    model.generate(**batch, max_new_tokens=2, num_beams=4, do_sample=False)
    assert sorted(read) == sorted([*batch["attention_mask"].sum(1).tolist(), *[1] * 12])


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_returned_cache_goes_on_where_it_was(
    name: str, model: ShoalForCausalLM, batch: Any
) -> None:
    options: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True}
    first = model.generate(**batch, max_new_tokens=8, **options)
    new = torch.ones(len(PROMPTS), 8, dtype=torch.int64)
    going_on = model.generate(
        first.sequences,
        attention_mask=torch.cat([batch["attention_mask"], new], 1),
        max_new_tokens=LENGTH - 8,
        **{name: first[CACHE]},
        **options,
    )
    whole = model.generate(**batch, max_new_tokens=LENGTH, **options)
    assert torch.equal(going_on.sequences, whole.sequences)


def test_logits_are_those_of_transformers_and_zero_at_padding(
    model: ShoalForCausalLM, oracle: Any, right_padded: Any
) -> None:
    real = right_padded["attention_mask"].bool()
    with torch.no_grad():
        expected = oracle(**right_padded).logits
    found = model(**right_padded).logits
    assert (found[real] - expected[real]).abs().max() <= BUNDLE_LOGITS
    assert not found[~real].any()
    logits, _ = model(**right_padded, return_dict=False)
    assert torch.equal(logits, found)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_either_name_of_the_cache_is_understood(name: str, model: ShoalForCausalLM) -> None:
    first = model(torch.tensor([[5, 6]]))
    found = model(torch.tensor([[7]]), **{name: first[CACHE]})
    assert found[CACHE] is first[CACHE]
    assert found[CACHE].get_seq_length() == 3


def test_what_transformers_hands_through_makes_no_difference(model: ShoalForCausalLM) -> None:
    ids = torch.tensor([[5, 6, 7]])
    found = model(ids, output_attentions=False, position_ids=None, is_first_iteration=True)
    assert torch.equal(found.logits, model(ids).logits)


def test_pipelines_take_the_model(
    model: ShoalForCausalLM,
    oracle: Any,
    tokenizer: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = {"max_new_tokens": 8, "do_sample": False}
    found = pipeline("text-generation", model=model, tokenizer=tokenizer)(
        PROMPTS, batch_size=2, **options
    )
    assert "not supported" not in capfd.readouterr().err
    expected = pipeline("text-generation", model=oracle, tokenizer=tokenizer)(PROMPTS, **options)
    assert found == expected


def test_the_config_is_that_of_transformers(model: ShoalForCausalLM) -> None:
    assert isinstance(model.config, DeepseekV3Config)
    assert model.config.kv_lora_rank == 128
    assert model.generation_config.eos_token_id == 1


def test_saving_copies_the_bundle(
    model: ShoalForCausalLM, fp32_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    model.save_pretrained(folder)
    names = sorted(path.name for path in fp32_bundle.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (fp32_bundle / name).read_bytes(), name
    again = ShoalForCausalLM.from_pretrained(folder, threads=1)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_checkpoint_is_exported_to_a_folder_that_goes_away(
    fp32_bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def fake_export(checkpoint: str, bundle: Path, **options: Any) -> None:
        assert checkpoint == str(tiny_checkpoint)
        hub = {"revision": None, "token": None}
        assert options == {"weights": "fp32", "block_size": 64, "fidelity": False, **hub}
        shutil.copytree(fp32_bundle, bundle)
        made.append(bundle)

    monkeypatch.setattr(causal_lm, "export_bundle", fake_export)
    model = ShoalForCausalLM.from_pretrained(
        str(tiny_checkpoint), export=True, weights="fp32", block_size=64, threads=1
    )
    assert model(torch.tensor([[5]])).logits.shape == (1, 1, 4096)
    assert made[0].exists()
    del model
    gc.collect()
    assert not made[0].parent.exists()


def test_what_cannot_be_done_is_refused(
    model: ShoalForCausalLM, oracle: Any, batch: Any, right_padded: Any
) -> None:
    with pytest.raises(InputError, match="found padding in row 0; pad on the left"):
        model.generate(**right_padded, max_new_tokens=1)
    with pytest.raises(InputError, match=r"expected shape \[1, 2\], found \[1, 3\]"):
        model(torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 3))
    with pytest.raises(InputError, match=r"expected shape \[3, tokens\], found \[1, 1\]"):
        model(torch.tensor([[1]]), cache=model(**batch)[CACHE])
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        model.generate(torch.tensor([[1]]), assistant_model=oracle, max_new_tokens=1)
    with pytest.raises(InputError, match="bundles run on the CPU, found cuda"):
        model.to("cuda")
    assert model.to("cpu").eval() is model
