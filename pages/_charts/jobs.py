"""Plotly figures of a training run's metrics.

Text is translated through a function handed in; colours are those of ``_charts``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from pages._charts.cases import DISEASE_COLOUR, OTHER_COLOURS, QUERY_COLOUR

Records = Sequence[Mapping[str, Any]]
_HEIGHT = 250
_LAYOUT = {
    "height": _HEIGHT,
    "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    "hovermode": "x unified",
}


def build_lines(
    records: Records, fields: Mapping[str, str], *, x_title: str, is_log: bool = False
) -> go.Figure:
    """One line per field over the steps.

    Args:
        records: of a job's metrics.
        fields: name in the record -> words shown.
        x_title: words under the axis.
        is_log: for learning rates that lie far apart. A zero has no place on such an axis and is
            left out; where there are only zeros the axis is a plain one.
    """
    figure = go.Figure()
    is_log = is_log and any(r[name] > 0 for r in records for name in fields)
    colours = (OTHER_COLOURS[0], DISEASE_COLOUR, QUERY_COLOUR)
    dashes = ("solid", "dash", "dot")
    for (name, words), colour, dash in zip(fields.items(), colours, dashes, strict=False):
        shown = [r for r in records if r[name] > 0 or not is_log]
        figure.add_scatter(
            x=[r["step"] for r in shown],
            y=[r[name] for r in shown],
            name=words,
            mode="lines+markers",
            marker={"size": 7},  # a single point must be seen
            line={"color": colour, "dash": dash},
        )
    figure.update_layout(**_LAYOUT, showlegend=True)
    figure.update_xaxes(title=x_title, fixedrange=True)
    figure.update_yaxes(fixedrange=True, type="log" if is_log else "linear", exponentformat="e")
    if not is_log:
        figure.update_yaxes(rangemode="tozero", exponentformat="none")
    return figure


def build_validation(records: Records, *, accuracy: str, auroc: str, x_title: str) -> go.Figure:
    """Validation accuracy and AUROC over the steps at which they were measured."""
    measured = [{"step": r["step"], **r["validation"]} for r in records if r.get("validation")]
    return build_lines(measured, {"accuracy": accuracy, "auroc": auroc}, x_title=x_title)


def build_k_curve(scores: Sequence[Mapping[str, float]], *, accuracy: str, auroc: str) -> go.Figure:
    """Accuracy and AUROC by the number of neighbours that vote."""
    rows = [{"step": s["k"], **s} for s in scores]
    figure = build_lines(rows, {"accuracy": accuracy, "auroc": auroc}, x_title="K")
    figure.update_xaxes(tickvals=[s["k"] for s in scores])
    return figure


def build_growing_map(placed: Mapping[str, Any], *, disease: str, other: str) -> go.Figure:
    """The validation images as points, by class."""
    figure = go.Figure()
    for is_disease, words in ((False, other), (True, disease)):
        points = [
            xy for xy, d in zip(placed["xy"], placed["is_disease"], strict=True) if d is is_disease
        ]
        figure.add_scatter(
            x=[p[0] for p in points],
            y=[p[1] for p in points],
            mode="markers",
            name=words,
            hoverinfo="name",
            marker={
                "size": 8,
                "opacity": 0.75,
                "symbol": "diamond" if is_disease else "circle",
                "color": DISEASE_COLOUR if is_disease else OTHER_COLOURS[0],
            },
        )
    figure.update_layout(**_LAYOUT, showlegend=True)
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(visible=False, fixedrange=True)
    figure.update_yaxes(visible=False, fixedrange=True, scaleanchor="x")
    return figure
