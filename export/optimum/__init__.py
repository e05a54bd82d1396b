"""Bundles in Hugging Face optimum and transformers; needs the optimum extra.

The one place that sees export, runtime and transformers at once. Nothing in shoal imports it.
"""

from shoal.export.optimum.causal_lm import ShoalForCausalLM

__all__ = ["ShoalForCausalLM"]
