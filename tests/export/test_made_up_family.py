"""docs/add-a-family.md makes up a family with another wiring. It is built from that page alone.

Every check of test_families.py is made on it, with an oracle of transformers' own modules.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.export import family_cases, test_families
from tests.export.family_cases import Case
from tests.export.test_families import Exported, export_case
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3DecoderLayer,
    DeepseekV3MLP,
)

from shoal.export.config import families as families_package
from shoal.export.config.families.family import families
from shoal.export.model import wirings as wirings_package

PAGE = Path(__file__).parents[2] / "docs" / "add-a-family.md"
FILE_ON_PAGE = re.compile(r"^`(\w+\.py)` in `([\w/]+)`:[^\n]*\n\n```python\n(.*?)```", re.M | re.S)
PACKAGES = {
    "export/config/families": families_package,
    "export/model/wirings": wirings_package,
}
ROW_FILE = "tests/export/family_cases.py"


class FjordLayer(DeepseekV3DecoderLayer):  # type: ignore[misc]
    """All branches read one normalised copy."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        del self.post_attention_layernorm
        has_experts = layer_idx >= config.first_k_dense_replace
        self.dense_mlp = DeepseekV3MLP(config) if has_experts else None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = self.input_layernorm(hidden_states)
        hidden_states = hidden_states + self.self_attn(x, *args, **kwargs)[0] + self.mlp(x)
        return hidden_states if self.dense_mlp is None else hidden_states + self.dense_mlp(x)


class FjordConfig(DeepseekV3Config):  # type: ignore[misc]
    model_type = "fjord"


class FjordForCausalLM(DeepseekV3ForCausalLM):  # type: ignore[misc]
    config_class = FjordConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for index in range(config.num_hidden_layers):
            self.model.layers[index] = FjordLayer(config, index)


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    """The files on the page, by path."""
    found = FILE_ON_PAGE.findall(PAGE.read_text(encoding="utf-8"))
    return {f"{folder}/{name}": content for name, folder, content in found}


@pytest.fixture(scope="module")
def case(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """The row on the page, while the other files on it are where they belong."""
    modules_before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for folder, package in PACKAGES.items():
            added = tmp_path_factory.mktemp(Path(folder).name)
            patch.setattr(package, "__path__", [*package.__path__, str(added)])
            for path, content in files.items():
                if Path(path).parent == Path(folder):
                    (added / Path(path).name).write_text(content, encoding="utf-8")
        for oracle in (FjordConfig, FjordForCausalLM):
            # An import may get another module object of transformers than the row has.
            module = vars(family_cases)["transformers"]
            patch.setattr(module, oracle.__name__, oracle, raising=False)
        families.cache_clear()
        rows: dict[str, Case] = eval(f"{{{files[ROW_FILE]}}}", vars(family_cases))
        (name,) = rows
        patch.setitem(family_cases.CASES, name, rows[name])
        yield rows[name]
    families.cache_clear()
    for name in set(sys.modules) - modules_before:
        if name.endswith((".families.fjord", ".wirings.parallel")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def exported(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_case(case, tmp_path_factory.mktemp("fjord"))


def checks() -> list[Callable[..., None]]:
    """The tests of test_families.py that take an exported family."""
    functions = inspect.getmembers(test_families, inspect.isfunction)
    return [
        check
        for name, check in functions
        if name.startswith("test_") and list(inspect.signature(check).parameters) == ["exported"]
    ]


def test_the_page_has_three_files(files: dict[str, str]) -> None:
    folders = sorted(path.rpartition("/")[0] for path in files)
    assert folders == [*sorted(PACKAGES), "tests/export"]
    assert ROW_FILE in files
    root = PAGE.parents[1]
    assert [path for path in files if (root / path).exists()] == [ROW_FILE]


@pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__)
def test_the_made_up_family_passes(check: Callable[..., None], exported: Exported) -> None:
    check(exported)


def test_its_published_config_is_accepted(case: Case) -> None:
    test_families.test_the_published_config_is_accepted("fjord")


def test_all_checks_were_found() -> None:
    assert len(checks()) >= 7
