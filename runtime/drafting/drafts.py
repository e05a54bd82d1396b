"""Drafts for the contexts of one opened model: the module they share, and what is learnt of it."""

from __future__ import annotations

import functools

from shoal.graphs.cache_types import graph_role
from shoal.graphs.errors import InputError
from shoal.graphs.footprint import mtp_weight_bytes
from shoal.runtime.bundle import Bundle
from shoal.runtime.drafting.draft_policy import AutoDraft, FixedDraft
from shoal.runtime.drafting.drafter import Drafter
from shoal.runtime.drafting.row_audit import RowAudit, shortest_depth
from shoal.runtime.drafting.speculation import LONGEST_DRAFT, Speculation
from shoal.runtime.engine.context import Context
from shoal.runtime.engine.fit import check_later_graph
from shoal.runtime.engine.layer_state import CacheLayout
from shoal.runtime.engine.session import GraphSession, SessionSettings

DRAFTER = "mtp"
"""The name under which a context has its drafter."""


class Drafts:
    """Gives contexts drafters. The module is loaded when it is first asked for.

    Args:
        bundle: whose module it is.
        layout: of the contexts' latent caches.
        settings: threads and kernels.
        head: the graph that turns hidden states into logits.
        max_memory: bytes this process may take for itself, None for what there is.
    """

    def __init__(
        self,
        bundle: Bundle,
        layout: CacheLayout,
        settings: SessionSettings,
        head: GraphSession,
        max_memory: int | None,
    ) -> None:
        self._bundle = bundle
        self._layout = layout
        self._settings = settings
        self._head = head
        self._max_memory = max_memory
        self._audit = RowAudit()
        self._auto_draft = AutoDraft()

    @property
    def are_possible(self) -> bool:
        """Whether the bundle has a multi-token-prediction module."""
        return DRAFTER in self._bundle.manifest.graphs

    def start(self, context: Context) -> Drafter:
        """The drafter of a context, which is given one if it has none.

        Raises:
            InputError: the bundle has no multi-token-prediction module.
            RuntimeFailure: not enough memory to load it.
        """
        drafter = context.observer(DRAFTER)
        if not isinstance(drafter, Drafter):
            drafter = Drafter(self._bundle.manifest.model, self._mtp, self._head, self._layout)
            context.attach(DRAFTER, drafter)
        return drafter

    def speculation(self, context: Context, draft: int | str) -> Speculation | None:
        """What decodes a context with drafts, None if there are to be none.

        Args:
            context: what is decoded in.
            draft: see ``Model.generate``.

        Raises:
            InputError: another value, or drafts of a bundle that has no module for them.
        """
        if draft == 0 or (draft == "auto" and not self.are_possible):
            return None
        if draft != "auto" and draft not in range(1, LONGEST_DRAFT + 1):
            raise InputError(f"draft must be auto or in 0..{LONGEST_DRAFT}, found {draft!r}")
        drafter = self.start(context)
        drafter.keeps_all = draft != "auto"
        return Speculation(
            context,
            drafter,
            self._auto_draft if draft == "auto" else FixedDraft(int(draft)),
            self._audit,
            shortest=shortest_depth(self._settings),
            warn=draft != "auto",
        )

    @functools.cached_property
    def _mtp(self) -> GraphSession:
        if not self.are_possible:
            raise InputError(
                f"{self._bundle.folder}: drafts need a multi-token-prediction module, this bundle "
                "has none; use draft 0"
            )
        manifest, is_portable = self._bundle.manifest, self._settings.library is None
        path = self._bundle.checked_graph(graph_role("mtp", self._layout.type))
        copied = mtp_weight_bytes(manifest.tensors) if is_portable else 0
        check_later_graph(str(path), 1, copied, self._max_memory, "use draft 0")
        return GraphSession(path, self._settings)
