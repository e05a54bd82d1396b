"""Imported by the fork server of export_process, and by nobody else: builds the graphs once."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.acceptance.export_process import GRAPHS

from shoal.export.config.model_config import load_config
from shoal.export.tracing.assemble import build_graphs
from shoal.graphs.recipes import DEFAULT_RECIPE, RECIPES

torch.set_num_threads(1)  # threads do not survive a fork
_, _config = load_config(Path(__file__).parents[2] / "checkpoints" / "tiny-v3")
GRAPHS.append(build_graphs(_config, num_mtp_layers=1, recipe=RECIPES[DEFAULT_RECIPE]))
