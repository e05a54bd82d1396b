"""An evaluation as a page of HTML that stands alone: no scripts, no other files, no network."""

from __future__ import annotations

from html import escape

import numpy as np

from shoal.runtime.evaluation.chart import Axis, Line, line_chart
from shoal.runtime.evaluation.results import Agreement, Evaluation
from shoal.runtime.evaluation.table import Grid, grids, summary

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; max-width: 40rem; height: auto; font: 12px system-ui, sans-serif; }
"""
_SMALLEST_KL = 1e-7  # nats; less than this is the rounding of float32 logits
_CURVE_POINTS = 200


def evaluation_page(result: Evaluation) -> str:
    """The whole page."""
    compared = [(model.name, model.agreement) for model in result.models if model.agreement]
    parts = [f"<h1>Evaluation</h1>\n<p>{escape(summary(result))}</p>", *map(_table, grids(result))]
    curves = [_curve(name, found) for name, found in compared]
    curves = [line for line in curves if line.points]
    if curves:
        parts.append(_survival_chart(curves))
    if any(found.same_experts_by_layer for _, found in compared):
        parts.append(_layer_chart(compared))
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>shoal eval</title>\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _table(grid: Grid) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in grid.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in grid.rows
    )
    return (
        f'<h2>{escape(grid.title)}</h2>\n<div class="wide"><table>\n<tr>{head}</tr>\n{rows}\n'
        "</table></div>"
    )


def _curve(name: str, found: Agreement) -> Line:
    """Share of the positions with at least a given divergence."""
    kl = np.sort(found.kl)[::-1]
    kl = kl[kl >= _SMALLEST_KL]
    ranks = np.unique(np.geomspace(1, max(len(kl), 1), _CURVE_POINTS).astype(int))[: len(kl)]
    share = 100 * ranks / len(found.kl)
    return Line(name=name, points=list(zip(kl[ranks - 1], share, strict=True)) if len(kl) else [])


def _survival_chart(curves: list[Line]) -> str:
    points = [point for line in curves for point in line.points]
    kls, shares = zip(*points, strict=True)
    x = Axis(label="KL divergence (nats)", low=min(kls), high=max(kls) * 1.1, logarithmic=True)
    y = Axis(
        label="positions with at least this much (%)",
        low=min(shares),
        high=100.0,
        logarithmic=True,
    )
    return f"<h2>Positions by divergence</h2>\n{line_chart(x, y, curves)}"


def _layer_chart(compared: list[tuple[str, Agreement]]) -> str:
    lines = [
        Line(
            name=name,
            points=[(layer, 100 * share) for layer, share in found.same_experts_by_layer.items()],
            marked=True,
        )
        for name, found in compared
        if found.same_experts_by_layer
    ]
    layers, shares = zip(*(point for line in lines for point in line.points), strict=True)
    x = Axis(label="layer", low=min(layers) - 0.3, high=max(layers) + 0.3, whole=True)
    y = Axis(label="same experts (%)", low=min(min(shares), 99.9), high=100.0)
    return f"<h2>Routing by layer</h2>\n{line_chart(x, y, lines)}"
