"""Figures of the gallery map, as SVG so that no WebGL is needed.

At most ``MAX_POINTS`` points are drawn: a lasso is applied to all images on the server. The
free-turning 3-D figure is the only one that needs WebGL, and nothing depends on it.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from core.exploring.gallery_table import Exploration
from pages._charts.cases import LINE_COLOUR, QUERY_COLOUR, class_colour, class_symbol

MAX_POINTS = 3000
_MAX_TRACES = 12
_PALETTE = (  # none is the colour of a class
    *("#8b7bd8", "#c25f8e", "#5fa8a0", "#a07a4a", "#6f7f95", "#b3a13c"),
    *("#7a5c99", "#4f9d69", "#b56b4c", "#9db0c9", "#c99ab5", "#8a8f99"),
)
_SYMBOLS = ("circle", "square", "cross")  # those that a 3-D figure has too
Translate = Callable[[str], str]


def sample_points(n: int, *, among: NDArray[np.int64], always: Sequence[int]) -> NDArray[np.int64]:
    """Rows to draw, ascending: all of ``among`` up to the limit, else a fixed sample."""
    wanted = np.asarray(sorted(set(always)), dtype=np.int64)
    if len(among) > MAX_POINTS:
        among = np.random.default_rng(n).choice(among, MAX_POINTS - len(wanted), replace=False)
    return np.union1d(among, wanted)


def build_gallery_map(
    seen: Exploration,
    xy: NDArray[np.float32],
    *,
    rows: NDArray[np.int64],
    colour_by: str,
    words: Translate,
    disease_class: str,
    opened: int | None = None,
    neighbours: Sequence[int] = (),
    highlighted: Sequence[int] | NDArray[np.int64] = (),
) -> go.Figure:
    """The gallery as points; the legend hides a group at a click.

    Args:
        seen: the table.
        xy: (N, 2) places.
        rows: to draw, of ``sample_points``.
        colour_by: a column.
        words: value of a column -> the words shown.
        disease_class: drawn as diamonds in orange, never green.
        opened: the image on view: a star with lines to its true neighbours.
        neighbours: these, from the embedding space.
        highlighted: selected rows; those of them that are drawn get a ring.
    """
    figure = go.Figure()
    _add_lines(figure, xy, opened, neighbours)
    values = seen.columns[colour_by]
    if np.issubdtype(values.dtype, np.number):
        _add_scale(figure, seen, xy, rows, values, words(colour_by))
    else:
        for number, (value, mine) in enumerate(group_rows(values, rows)):
            marker = _style(value, number, seen.class_names, disease_class)
            _add_group(figure, seen, xy, mine, name=words(value), marker=marker)
    _add_rings(
        figure,
        xy,
        np.setdiff1d(np.intersect1d(highlighted, rows), [-1 if opened is None else opened]),
    )
    _add_star(figure, xy, opened)
    figure.update_layout(**_LAYOUT)
    return figure


def group_rows(
    values: NDArray[Any], rows: NDArray[np.int64]
) -> list[tuple[str, NDArray[np.int64]]]:
    """Rows by value, most frequent first; what is beyond 12 values is one group called "…"."""
    names, counts = np.unique(values[rows].astype(str), return_counts=True)
    ordered = [str(names[i]) for i in np.lexsort((names, -counts))]
    kept = ordered if len(ordered) <= _MAX_TRACES else ordered[: _MAX_TRACES - 1]
    groups = [(name, rows[values[rows].astype(str) == name]) for name in kept]
    if len(kept) < len(ordered):
        groups.append(("…", rows[~np.isin(values[rows].astype(str), kept)]))
    return groups


def _style(
    value: str, number: int, class_names: Sequence[str], disease_class: str
) -> dict[str, Any]:
    if value in class_names:
        return {
            "color": class_colour(value, class_names, disease_class),
            "symbol": class_symbol(value, class_names, disease_class),
        }
    if value in ("wrong", "relabelled", "set aside"):
        return {"color": QUERY_COLOUR, "symbol": "x"}
    if value in ("right", "as trained", "votes"):
        return {"color": "#8a8f99", "symbol": "circle"}
    return {
        "color": _PALETTE[number % len(_PALETTE)],
        "symbol": _SYMBOLS[number % len(_SYMBOLS)],
    }


def _add_group(
    figure: go.Figure,
    seen: Exploration,
    xy: NDArray[np.float32],
    rows: NDArray[np.int64],
    *,
    name: str,
    marker: Mapping[str, Any],
) -> None:
    shown = html.escape(name or "–")
    figure.add_scatter(
        x=xy[rows, 0],
        y=xy[rows, 1],
        mode="markers",
        name=shown,
        customdata=rows.tolist(),
        text=[html.escape(seen.keys[row]) for row in rows.tolist()],
        hovertemplate="%{text}<br>" + shown + "<extra></extra>",
        marker={"size": 7, "opacity": 0.7, **marker},
    )


def _add_scale(
    figure: go.Figure,
    seen: Exploration,
    xy: NDArray[np.float32],
    rows: NDArray[np.int64],
    values: NDArray[Any],
    title: str,
) -> None:
    bar = {"title": {"text": html.escape(title), "side": "right"}, "thickness": 12}
    _add_group(
        figure,
        seen,
        xy,
        rows,
        name=title,
        marker={"color": values[rows], "colorscale": "Cividis", "colorbar": bar},
    )
    figure.data[-1].showlegend = False


def _add_lines(
    figure: go.Figure, xy: NDArray[np.float32], opened: int | None, neighbours: Sequence[int]
) -> None:
    if opened is None:
        return
    xs: list[float | None] = []
    ys: list[float | None] = []
    for row in neighbours:
        xs += [float(xy[opened, 0]), float(xy[row, 0]), None]
        ys += [float(xy[opened, 1]), float(xy[row, 1]), None]
    line = {"color": LINE_COLOUR, "width": 1.2}
    figure.add_scatter(x=xs, y=ys, mode="lines", hoverinfo="skip", showlegend=False, line=line)


def _add_rings(figure: go.Figure, xy: NDArray[np.float32], picked: NDArray[np.int64]) -> None:
    if not len(picked):
        return
    ring = {"size": 10, "symbol": "circle-open", "color": QUERY_COLOUR, "line": {"width": 1}}
    figure.add_scatter(
        x=xy[picked, 0], y=xy[picked, 1], mode="markers", hoverinfo="skip", showlegend=False,
        marker=ring,
    )  # fmt: skip


def _add_star(figure: go.Figure, xy: NDArray[np.float32], opened: int | None) -> None:
    if opened is None:
        return
    star = {"symbol": "star", "size": 18, "color": QUERY_COLOUR, "line": {"width": 1.5}}
    figure.add_scatter(
        x=[xy[opened, 0]], y=[xy[opened, 1]], mode="markers", hoverinfo="skip", showlegend=False,
        marker={**star, "line": {"width": 1.5, "color": "#ffffff"}},
    )  # fmt: skip


def build_free_map(
    seen: Exploration,
    xyz: NDArray[np.float32],
    *,
    rows: NDArray[np.int64],
    colour_by: str,
    words: Translate,
    disease_class: str,
) -> go.Figure:
    """A 3-D figure to be turned with the mouse; needs WebGL, and cannot be lassoed."""
    figure = go.Figure()
    values = seen.columns[colour_by]
    groups = (
        [(colour_by, rows)] if np.issubdtype(values.dtype, np.number) else group_rows(values, rows)
    )
    for number, (value, mine) in enumerate(groups):
        marker = _style(value, number, seen.class_names, disease_class)
        if value == colour_by:
            marker = {"color": values[mine], "colorscale": "Cividis"}
        figure.add_scatter3d(
            x=xyz[mine, 0],
            y=xyz[mine, 1],
            z=xyz[mine, 2],
            mode="markers",
            name=html.escape(words(value) or "–"),
            customdata=mine.tolist(),
            text=[html.escape(seen.keys[row]) for row in mine.tolist()],
            hovertemplate="%{text}<extra></extra>",
            marker={"size": 3, **marker},
        )
    hidden = {"visible": False}
    scene = {"xaxis": hidden, "yaxis": hidden, "zaxis": hidden}
    figure.update_layout(**{**_LAYOUT, "scene": scene, "dragmode": "orbit"})
    return figure


_LAYOUT = {
    "height": 520,
    "margin": {"l": 4, "r": 4, "t": 4, "b": 4},
    "legend": {"orientation": "h", "y": -0.02, "x": 0, "itemsizing": "constant"},
    "xaxis": {"visible": False},
    "yaxis": {"visible": False, "scaleanchor": "x"},
    "hovermode": "closest",
    "dragmode": "lasso",
    "uirevision": "kept",
}
