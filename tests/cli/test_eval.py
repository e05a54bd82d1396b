"""``shoal eval``: tables, JSON and the page, and what goes wrong."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.tolerances import CACHE_ROUNDING_KL

from shoal.graphs.fidelity import shipped_text
from shoal.runtime.bundle import Bundle
from shoal.runtime.commands.cli import main
from shoal.runtime.console.progress import WorkProgress
from shoal.runtime.units import format_bytes

pytestmark = pytest.mark.dependencies

WINDOW = "64"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(shipped_text()[:800], encoding="utf-8")
    return str(path)


@pytest.fixture
def run(
    fp32_bundle: Path, int8_bundle: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Compares int8 with float32; returns exit code, stdout and stderr."""

    def evaluate(*options: object) -> tuple[int, str, str]:
        models = [str(fp32_bundle), str(int8_bundle)]
        argv = ["eval", *models, "--text", text, "--window", WINDOW, "--threads", "1"]
        code = main([*argv, *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return evaluate


class Structure(HTMLParser):
    """Tags that are open and what is referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # shapes of a chart: open and closed at once

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.references += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_table_says_what_was_compared_and_how_close_it_is(
    run: Callable[..., tuple[int, str, str]], int8_bundle: Path
) -> None:
    code, out, err = run("--generate", "4")
    assert (code, err) == (0, "")
    assert re.match(r"prose\.txt: \d+ tokens in \d+ windows of 64; compared with tiny-fp32; ", out)
    for heading in ("KL divergence from the reference (nats)", "Same experts by layer"):
        assert heading in out
    manifest = Bundle.open(int8_bundle).manifest
    num_bytes = sum(tensor.size for tensor in manifest.tensors.values())
    held = f"{format_bytes(num_bytes)} +{8 * num_bytes / manifest.model.parameters:.2f}"
    assert re.search(rf"^tiny-int8 +int8 +{held} +\S+ \[\S+, \S+\]", out, re.MULTILINE)
    assert len(re.findall("^tiny-fp32", out, re.MULTILINE)) == 1  # the reference is measured only
    assert "4 greedy tokens after each of" in out


def test_json_is_the_whole_result(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("--json")
    record = json.loads(out)
    assert code == 0
    assert record["reference"] == "tiny-fp32"
    float_model, int8_model = record["models"]
    assert float_model["agreement"] is None
    assert 0 < int8_model["agreement"]["kl_mean"]["value"] < 0.01
    assert list(int8_model["agreement"]["same_experts_by_layer"]) == ["1", "2", "3", "4"]


def test_the_page_stands_alone(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    code, out, _ = run("--html", page)
    assert code == 0
    assert "perplexity" in out
    content = page.read_text(encoding="utf-8")
    structure = Structure()
    structure.feed(content)
    structure.close()
    assert structure.open == []
    assert structure.references == []
    assert "<script" not in content
    for table_row in out.splitlines():
        if table_row.startswith("tiny-int8"):
            for cell in re.split(r"  +", table_row.strip()):
                assert f"<td>{cell}</td>" in content
    charts = re.findall(r"<svg.*?</svg>", content, re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        ElementTree.fromstring(chart)
    assert "KL divergence (nats)" in charts[0]
    assert charts[1].count("<circle") == 4  # one for each layer


def test_names_of_models_are_text_on_the_page(
    int8_bundle: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "<b>&"
    link.symlink_to(int8_bundle, target_is_directory=True)
    hostile = tmp_path / "<i>.txt"
    hostile.write_text(Path(text).read_text(encoding="utf-8"), encoding="utf-8")
    page = tmp_path / "a.html"
    argv = ["eval", str(link), "--text", str(hostile), "--window", WINDOW, "--html", str(page)]
    assert main([*argv, "--threads", "1"]) == 0
    capsys.readouterr()
    content = page.read_text(encoding="utf-8")
    assert "&lt;i&gt;.txt" in content
    assert "<i>" not in content


def test_a_stored_reference_serves_another_run(
    fp32_bundle: Path,
    int8_bundle: Path,
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored = str(tmp_path / "a.ref")
    common = ["--text", text, "--window", WINDOW, "--threads", "1", "--json"]
    assert main(["eval", str(fp32_bundle), *common, "--save-reference", stored]) == 0
    capsys.readouterr()
    assert main(["eval", str(int8_bundle), *common, "--reference", stored]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["reference"] == "tiny-fp32 (stored)"
    assert [model["name"] for model in record["models"]] == ["tiny-fp32 (stored)", "tiny-int8"]


def test_a_short_text_is_a_warning_in_one_line(
    int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Call me Ishmael.")
    assert main(["eval", str(int8_bundle), "--text", str(path), "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"warning: {path}: at most ")
    assert captured.err.count("\n") == 1
    assert " in 1 windows" not in captured.out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--text", "NOWHERE"], "nowhere: the text cannot be read (No such file or directory)"),
        (["--tasks", "NOWHERE"], "nowhere: the task cannot be read (No such file or directory)"),
        (["--reference", "NOWHERE"], "nowhere"),
        (["--save-reference", "NOWHERE/a"], "the reference could not be written (No such file"),
        (["--html", "NOWHERE/a"], "the page could not be written (No such file"),
    ],
)
def test_paths_that_are_not_there_are_one_line(
    options: list[str],
    expected: str,
    run: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    here = [option.replace("NOWHERE", str(tmp_path / "nowhere")) for option in options]
    code, out, err = run(*here)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1


def test_ctrl_c_leaves_nothing_behind(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkProgress, "__call__", stop)
    code, out, err = run("--save-reference", tmp_path / "a.ref", "--html", tmp_path / "a.html")
    assert (code, out, err) == (130, "", "stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_a_smaller_cache_is_compared_with_the_stored_predictions_of_a_large_one(
    fp32_bundle: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["eval", str(fp32_bundle), "--text", text, "--threads", "1", "--json"]
    stored = str(tmp_path / "float32.ref")
    assert main([*argv, "--save-reference", stored]) == 0
    capsys.readouterr()
    medians = []
    for cache in ("float16", "int8"):
        assert main([*argv, "--reference", stored, "--cache", cache]) == 0
        _, model = json.loads(capsys.readouterr().out)["models"]
        medians.append(model["agreement"]["kl_median"])
        assert medians[-1] <= CACHE_ROUNDING_KL["int8"]
    assert medians[0] < medians[1]
