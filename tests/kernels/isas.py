"""What the tests of the kernels have to know of this machine's architecture."""

from __future__ import annotations

import platform

ISAS = {
    "x86_64": ("avx512vnni", "avxvnni", "avx2", "portable"),
    "aarch64": ("i8mm", "dotprod", "neon", "portable"),
}.get(platform.machine(), ("portable",))

BODIES_ROUND_ALIKE = platform.machine() == "x86_64"
"""Whether onnxruntime's own int8 products give what ours do. On ARM they round otherwise, or leave
the activations as they are, depending on the processor; tests/graphs bounds what that changes."""
