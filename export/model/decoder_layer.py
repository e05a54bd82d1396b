"""One layer of the decoder, made of the blocks that its wiring names (export/model/wiring.py)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from shoal.export.config.model_config import ModelConfig
from shoal.export.model.layers import RMSNorm
from shoal.export.model.wiring import Block, Blocks, LayerState, run_block, walk


class DecoderLayer(nn.Module):
    """The norms and branches of a layer, as submodules in the order of weights.bin.

    Attributes:
        blocks: what the layer is made of.
    """

    def __init__(self, config: ModelConfig, blocks: Blocks) -> None:
        super().__init__()
        self.blocks = blocks
        for block in blocks:
            self.add_module(block.norm, RMSNorm(config.hidden_size, config.rms_norm_eps))
            for branch in block.experts_last().branches:
                self.add_module(branch.module, branch.build(config))

    def forward(
        self, flow: dict[str, Tensor], state: LayerState
    ) -> tuple[LayerState, dict[str, Tensor]]:
        """Run the layer.

        Args:
            flow: what comes from the layer before; changed to what goes to the next.
            state: of the layer, with room for the new tokens.

        Returns:
            The new state; and of a layer with experts ``expert_ids`` and ``expert_weights``.
        """
        return walk(self.blocks, flow, state, self._run)

    def _run(self, block: Block, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return run_block(block, self, values)
