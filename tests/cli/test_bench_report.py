from __future__ import annotations

import copy
import getpass
import json
import re
from pathlib import Path
from typing import Any

import pytest

from shoal.runtime.bundle import Bundle
from shoal.runtime.commands.board_row import TABLE_HEADINGS, summary
from shoal.runtime.commands.cli import main

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
SHORT = ["--depths", "0,20", "--prefill", "16", "--new-tokens", "2", "--repeats", "1"]


@pytest.fixture(scope="module")
def report(int8_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("report") / "board.json"
    assert main(["bench", str(int8_bundle), *SHORT, "--report", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_report_holds_what_makes_figures_comparable(
    report: dict[str, Any], int8_bundle: Path
) -> None:
    assert report["report_version"] == 1
    assert set(report["versions"]) == {"shoal", "onnxruntime", "numpy", "python", "system"}
    manifest = Bundle.open(int8_bundle).manifest
    assert report["model"]["token_read_bytes"] == manifest.token_read_bytes
    assert [row["depth"] for row in report["decode"]] == [0, 20]
    assert [row["tokens"] for row in report["prefill"]] == [16]
    assert report["read_bandwidth_bytes_per_s"] > 1e8
    for row in report["decode"]:
        share = row["read_bytes_per_s"] / report["read_bandwidth_bytes_per_s"]
        assert row["share_of_bandwidth"] == pytest.approx(share)
    for name in ("board", "cpu", "before", "after", "held_back", "kernels", "threads", "load_ms"):
        assert name in report


def test_report_names_no_person_and_no_place(report: dict[str, Any], int8_bundle: Path) -> None:
    text = json.dumps(report)
    assert str(int8_bundle) not in text
    assert int8_bundle.name not in text
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text)


def pi_report(report: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(report)
    changed["board"] |= {
        "name": "Raspberry Pi 5 Model B Rev 1.0",
        "is_virtual": False,
        "cores": "4x Cortex-A76",
        "governors": ["ondemand"],
    }
    changed["cpu"] |= {"architecture": "aarch64", "features": ["asimddp"]}
    changed["before"] |= {"celsius": 50.4, "mhz": [1500, 2400]}
    changed["after"] |= {"celsius": 71.6, "mhz": [2400, 2400]}
    changed |= {"held_back": False, "read_bandwidth_bytes_per_s": 8e9}
    changed |= {"kernels": "native", "instructions": "dotprod", "threads": 4}
    for row in changed["decode"]:
        row |= {"tokens_per_s": 12.345, "share_of_bandwidth": 0.756}
    return changed


def test_the_summary_is_a_row_of_the_table(report: dict[str, Any]) -> None:
    row = summary(pi_report(report))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == len(TABLE_HEADINGS)
    assert cells[0] == "Raspberry Pi 5 Model B Rev 1.0: 4x Cortex-A76 (asimddp)"
    assert cells[2] == "native dotprod, 4"
    assert report["cache"] == "float32", "the default is not worth a word"
    small = summary(pi_report(report) | {"cache": "int8"})
    assert "| native dotprod, 4, int8 cache |" in small
    assert cells[4] == "12.3 (0), 12.3 (20)"
    assert cells[6] == "76 % of 8 GB/s"
    assert cells[7] == "ondemand, 50 to 72 C, 2400 MHz, not throttled"
    assert "\n" not in row


def test_a_virtual_machine_and_unknown_figures_are_said_to_be_so(report: dict[str, Any]) -> None:
    changed = pi_report(report)
    changed["board"] |= {"is_virtual": True, "name": None, "governors": []}
    changed |= {"read_bandwidth_bytes_per_s": None, "held_back": None}
    for when in ("before", "after"):
        changed[when] |= {"celsius": None, "mhz": None}
    cells = [cell.strip() for cell in summary(changed).strip("|").split("|")]
    assert cells[0].startswith("virtual machine: ")
    assert (cells[6], cells[7]) == ("unknown", "unknown")


def test_a_report_for_stdout_is_alone_there(
    int8_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(int8_bundle), *SHORT, "--report", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["report_version"] == 1
    assert captured.err.splitlines()[-1].startswith("| ")


def test_two_reports_for_stdout_are_refused(
    base_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "b", "--json", "--report", "-"]) == 1
    assert "stdout can hold one report" in capsys.readouterr().err


def test_the_table_in_the_docs_has_these_headings_and_no_other_rows() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("|")]
    heading, rule, *found = [[cell.strip() for cell in row[1:-1].split("|")] for row in rows]
    assert tuple(heading) == TABLE_HEADINGS
    assert set("".join(rule)) == {"-"}
    assert all(len(cells) == len(TABLE_HEADINGS) for cells in found)
