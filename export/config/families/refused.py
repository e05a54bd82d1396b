"""Relatives that use latent attention but need more than this op set, and what they need."""

from __future__ import annotations

SPARSE_ATTENTION = "its sparse attention, an indexer that chooses which tokens are attended to,"
LINEAR_ATTENTION = "its linear attention layers, which keep a state instead of a cache,"

LACKS = {
    "deepseek_v32": SPARSE_ATTENTION,
    "glm_moe_dsa": SPARSE_ATTENTION,
    "deepseek_v4": "its compressed sparse attention and hyper-connections between layers",
    "kimi_linear": LINEAR_ATTENTION,
    "bailing_hybrid": LINEAR_ATTENTION,
    "mistral4": "its position-dependent query scale",
    "kimi_k25": "its vision tower; the language model alone is kimi_k2, which",
}
"""By model_type: what is missing here, worded to go before "is not supported"."""
