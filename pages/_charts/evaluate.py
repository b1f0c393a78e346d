"""Plotly figures of an evaluation: curves, reliability, robustness.

Text is translated through a function handed in. Lines differ by dash and marker as well as colour.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from numpy.typing import NDArray

from core.stats.curves import Bin, Coverage, Curves, OperatingPoint
from pages._charts.cases import DISEASE_COLOUR, OTHER_COLOURS, QUERY_COLOUR

Translate = Callable[[str], str]
_QUIET_LINE = {"color": "rgba(128, 128, 140, 0.8)", "dash": "dot", "width": 1.5}
_SERIES = (
    (OTHER_COLOURS[0], "solid", "circle"),
    (DISEASE_COLOUR, "dash", "diamond"),
    ("#8b7bd8", "dot", "square"),
    ("#2a9d8f", "dashdot", "x"),
    ("#8a8f99", "longdash", "triangle-up"),
)


def build_roc(curves: Curves, point: OperatingPoint, *, translate: Translate = str) -> go.Figure:
    """The ROC curve with the operating point on it."""
    _ = translate
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name=_("chance"), line=_QUIET_LINE, hoverinfo="skip"
    )
    figure.add_scatter(
        x=curves.false_positive_rate,
        y=curves.true_positive_rate,
        mode="lines",
        name=_("ROC curve"),
        customdata=curves.thresholds,
        line={"color": OTHER_COLOURS[0], "width": 2.5},
        hovertemplate="%{y:.3f} · %{x:.3f} · p > %{customdata:.3f}<extra></extra>",
    )
    specificity = point.specificity.share or 0.0
    _add_point(figure, 1 - specificity, point.sensitivity.share or 0.0, name=_("threshold"))
    return _style(figure, _("1 − specificity"), _("Sensitivity"))


def build_pr(curves: Curves, point: OperatingPoint, *, translate: Translate = str) -> go.Figure:
    """Precision against recall, at the prevalence of the measured images."""
    _ = translate
    figure = go.Figure()
    figure.add_scatter(
        x=curves.recall,
        y=curves.precision,
        mode="lines",
        name=_("precision"),
        line={"color": OTHER_COLOURS[0], "width": 2.5, "shape": "hv"},
    )
    n_right = point.sensitivity.n_hit
    if point.n_called:
        _add_point(
            figure, point.sensitivity.share or 0.0, n_right / point.n_called, name=_("threshold")
        )
    return _style(figure, _("Sensitivity (recall)"), _("Precision on these images"))


def build_reliability(bins: Sequence[Bin], *, translate: Translate = str) -> go.Figure:
    """Observed share of disease against the probability said, with intervals."""
    _ = translate
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name=_("perfect calibration"),
        line=_QUIET_LINE,
        hoverinfo="skip",
    )
    shares = [b.observed.share or 0.0 for b in bins]
    figure.add_scatter(
        x=[b.mean_p for b in bins],
        y=shares,
        mode="lines+markers",
        name=_("this model"),
        customdata=[b.observed.n for b in bins],
        hovertemplate="%{x:.2f} → %{y:.2f} (n = %{customdata})<extra></extra>",
        line={"color": OTHER_COLOURS[0], "width": 2},
        marker={"size": 9},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [b.observed.high - s for b, s in zip(bins, shares, strict=True)],
            "arrayminus": [s - b.observed.low for b, s in zip(bins, shares, strict=True)],
            "thickness": 1.2,
        },
    )
    for b, share in zip(bins, shares, strict=True):
        figure.add_annotation(
            x=b.mean_p, y=share, text=str(b.observed.n), showarrow=False, xshift=13, yshift=-9
        )
    return _style(figure, _("Predicted probability of disease"), _("Observed share with disease"))


def build_coverage(
    rows: Sequence[Coverage], margin: float, *, translate: Translate = str
) -> go.Figure:
    """Accuracy of the answered images against how many are answered."""
    _ = translate
    figure = go.Figure()
    drawn = [row for row in rows if row.accuracy is not None]
    figure.add_scatter(
        x=[row.coverage for row in drawn],
        y=[row.accuracy for row in drawn],
        mode="lines+markers",
        name=_("accuracy of the answered"),
        customdata=[[row.margin, row.n] for row in drawn],
        hovertemplate="%{x:.0%} → %{y:.1%} (|p − 0.5| ≥ %{customdata[0]:.2f}, "
        "n = %{customdata[1]})<extra></extra>",
        line={"color": OTHER_COLOURS[0], "width": 2},
        marker={"size": 6},
    )
    now = min(rows, key=lambda row: abs(row.margin - margin), default=None)
    if now is not None and now.accuracy is not None:  # at this setting it may answer nothing
        _add_point(figure, now.coverage, now.accuracy, name=_("current setting"))
    _style(figure, _("Share of images answered"), _("Accuracy of answered images"))
    lowest = min((row.accuracy or 0.0 for row in drawn), default=0.0)
    figure.update_yaxes(range=[max(0.0, lowest - 0.05), 1.005])
    return figure


def build_k_curves(
    here: Mapping[str, Sequence[Mapping[str, float]]],
    validation: Mapping[str, Sequence[Mapping[str, float]]],
    chosen: Mapping[str, int],
    *,
    translate: Translate = str,
) -> go.Figure:
    """Accuracy for every K, on validation (where K was chosen) and on these images."""
    _ = translate
    figure = go.Figure()
    for index, model_id in enumerate(here):
        colour, _dash, symbol = _SERIES[index % len(_SERIES)]
        for source, word, dash in (
            (validation, _("validation"), "dot"),
            (here, _("these images"), "solid"),
        ):
            scores = source.get(model_id, ())
            figure.add_scatter(
                x=[int(s["k"]) for s in scores],
                y=[s["accuracy"] for s in scores],
                mode="lines+markers",
                name=f"{model_id}, {word}",
                line={"color": colour, "dash": dash, "width": 2},
                marker={
                    "symbol": symbol,
                    "size": [13 if int(s["k"]) == chosen.get(model_id) else 6 for s in scores],
                },
            )
    _style(figure, _("Number of voting neighbours K (large marker: chosen K)"), _("Accuracy"))
    ks = {int(s["k"]) for scores in (*here.values(), *validation.values()) for s in scores}
    figure.update_xaxes(range=None, tickvals=sorted(ks))
    figure.update_yaxes(range=None)
    return figure


def build_robustness(
    rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], *, translate: Translate = str
) -> go.Figure:
    """Accuracy at each level of damage, one line per kind."""
    _ = translate
    figure = go.Figure()
    clean = next(row for row in rows if row["level"] == 0)
    kinds = list(dict.fromkeys(row["kind"] for row in rows if row["level"]))
    for index, kind in enumerate(kinds):
        colour, dash, symbol = _SERIES[index % len(_SERIES)]
        mine = [clean, *(row for row in rows if row["kind"] == kind)]
        figure.add_scatter(
            x=[row["level"] for row in mine],
            y=[row["accuracy"] for row in mine],
            mode="lines+markers",
            name=names.get(kind, kind),
            line={"color": colour, "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 9},
            hovertemplate=names.get(kind, kind) + " %{x}: %{y:.1%}<extra></extra>",
        )
    _style(figure, _("Level of corruption (0: none)"), _("Accuracy"))
    figure.update_xaxes(range=[-0.15, 3.15], tickvals=[0, 1, 2, 3])
    lowest = min(row["accuracy"] for row in rows)
    figure.update_yaxes(range=[max(0.0, min(0.45, lowest - 0.05)), 1.005])
    return figure


def build_distances(
    distances: Mapping[str, NDArray[Any]], *, translate: Translate = str
) -> go.Figure:
    """Distances to the gallery of several sets of images, by name, as distributions."""
    _ = translate
    figure = go.Figure()
    for index, (name, values) in enumerate(distances.items()):
        colour, _dash, _symbol = _SERIES[index % len(_SERIES)]
        figure.add_trace(
            go.Violin(
                x=values,
                name=name,
                side="positive",
                orientation="h",
                points=False,
                meanline_visible=True,
                line={"color": colour},
                spanmode="hard",
            )
        )
    _style(figure, _("Mean embedding distance to the 5 nearest training images"), "")
    figure.update_layout(showlegend=False)
    figure.update_xaxes(range=None)
    figure.update_yaxes(range=None)
    return figure


def _add_point(figure: go.Figure, x: float, y: float, *, name: str) -> None:
    figure.add_scatter(
        x=[x],
        y=[y],
        mode="markers",
        name=name,
        marker={"symbol": "star", "size": 17, "color": QUERY_COLOUR},
        hovertemplate=name + " %{x:.3f} / %{y:.3f}<extra></extra>",
    )


def _style(figure: go.Figure, x_title: str, y_title: str) -> go.Figure:
    axis = {"range": [-0.02, 1.02], "fixedrange": True, "zeroline": False}
    figure.update_layout(
        height=360,
        margin={"l": 8, "r": 12, "t": 10, "b": 8},
        legend={"orientation": "h", "y": -0.22, "x": 0, "xanchor": "left"},
        xaxis={**axis, "title": {"text": x_title}},
        yaxis={**axis, "title": {"text": y_title}},
        hovermode="closest",
    )
    return figure
