"""Opening and running a bundle tells nobody and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_running_a_bundle_writes_nothing_outside_and_leaves_the_environment_alone(
    int8_bundle: Path, tmp_path: Path
) -> None:
    code = f"""
import os
from shoal.runtime import open_bundle

before = dict(os.environ)
open_bundle({str(int8_bundle)!r}).logits([1, 2])
assert dict(os.environ) == before
"""
    homes = {key: str(tmp_path) for key in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME")}
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | homes
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_whoever_asks_for_telemetry_in_the_environment_keeps_it() -> None:
    code = """
import os
import shoal.runtime.engine.session
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
    # onnxruntime takes this for yes too, so the test itself reports nothing.
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert done.stdout == "true\n"
