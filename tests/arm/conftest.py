"""The tests in this folder are for ``make test-arm``, which names the folder they work in."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

# test_on_arm.py runs on the emulated processors and test_from_arm.py here, after those; neither
# has anything to say without the other, so other runs of pytest do not see them.
collect_ignore = ["test_on_arm.py", "test_from_arm.py"]
if "SHOAL_ARM_FOLDER" in os.environ:
    collect_ignore.remove(
        "test_on_arm.py" if platform.machine() == "aarch64" else "test_from_arm.py"
    )


@pytest.fixture(scope="session")
def arm_folder() -> Path:
    """What goes back and forth: answers and saved contexts."""
    return Path(os.environ["SHOAL_ARM_FOLDER"])


@pytest.fixture(scope="session")
def bundles() -> Path:
    """The folder with the exported bundles."""
    return Path(os.environ["SHOAL_TEST_BUNDLES"])
