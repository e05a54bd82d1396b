"""Opening and running a bundle tells nobody and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_running_a_bundle_writes_nothing_outside(int8_bundle: Path, tmp_path: Path) -> None:
    run = f"open_bundle({str(int8_bundle)!r}).logits([1, 2])"
    code = f"from shoal.runtime import open_bundle; {run}"
    homes = {key: str(tmp_path) for key in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME")}
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | homes
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
