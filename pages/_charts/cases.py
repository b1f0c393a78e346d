"""Plotly figures of one case: probabilities, votes, the map.

Text is translated through a function handed in, so that the figures can be tested alone. Class
colours are set here, not by the theme: disease is never green, and colour is never alone (marker
shape, hatching and words say the same).
"""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from core.answers.diagnosis import Diagnosis, write_percent

DISEASE_COLOUR = "#e07b00"
OTHER_COLOURS = ("#3f86d6", "#8b7bd8", "#8a8f99")  # first: normal
QUERY_COLOUR = "#d6246e"
LINE_COLOUR = "rgba(128, 128, 140, 0.7)"
MAX_MAP_POINTS = 3000
_QUIET = {"size": 7, "opacity": 0.5}
_VOTED = {"size": 12, "line": {"width": 2, "color": QUERY_COLOUR}}
_OTHER_SYMBOLS = ("circle", "square", "x")

Translate = Callable[[str], str]


def class_colour(name: str, class_names: Sequence[str], disease_class: str) -> str:
    """The colour of a class everywhere it is drawn."""
    if name == disease_class:
        return DISEASE_COLOUR
    return OTHER_COLOURS[_other_rank(name, class_names, disease_class) % len(OTHER_COLOURS)]


def class_symbol(name: str, class_names: Sequence[str], disease_class: str) -> str:
    """The marker shape of a class on the map."""
    if name == disease_class:
        return "diamond"
    return _OTHER_SYMBOLS[_other_rank(name, class_names, disease_class) % len(_OTHER_SYMBOLS)]


def _other_rank(name: str, class_names: Sequence[str], disease_class: str) -> int:
    others = [c for c in class_names if c != disease_class]
    return others.index(name) if name in others else len(others)


def build_probability_bar(
    diagnosis: Diagnosis, class_names: Sequence[str], *, label: Translate = str
) -> go.Figure:
    """One horizontal bar from 0 to 1, split by class, with the halfway line.

    Args:
        diagnosis: with probabilities.
        class_names: in label order; the disease class is drawn last (right).
        label: class name -> the words shown.
    """
    ordered = sorted(class_names, key=lambda name: name == diagnosis.disease_class)
    figure = go.Figure()
    for name in ordered:
        is_disease = name == diagnosis.disease_class
        written = html.escape(write_percent(diagnosis.probabilities.get(name, 0.0)))
        figure.add_bar(
            x=[diagnosis.probabilities.get(name, 0.0)],
            y=[""],
            orientation="h",
            name=label(name),
            marker={
                "color": class_colour(name, class_names, diagnosis.disease_class),
                "pattern": {
                    "shape": "/" if is_disease else "",
                    "fillmode": "overlay",
                    "fgcolor": "rgba(255, 255, 255, 0.4)",
                    "size": 7,
                },
            },
            hovertemplate=html.escape(label(name)) + f" {written}<extra></extra>",
        )
    figure.add_vline(x=0.5, line={"color": "rgba(128,128,140,.9)", "dash": "dot", "width": 2})
    figure.update_layout(**_BAR_LAYOUT)
    return figure


def build_map(
    diagnosis: Diagnosis,
    gallery_xy: NDArray[np.float32],
    labels: NDArray[np.int64],
    keys: Sequence[str],
    class_names: Sequence[str],
    *,
    translate: Translate = str,
    label: Translate = str,
) -> go.Figure:
    """The gallery as points, this image as a star, lines to the images that voted.

    Args:
        diagnosis: with ``map_xy``.
        gallery_xy: (N, 2) places of the gallery images; labels and keys alike.
        class_names: in label order.
        translate: message -> message in the reader's language.
        label: class name -> the words shown.
    """
    _ = translate
    figure = go.Figure()
    _add_lines(figure, diagnosis, gallery_xy, name=_("line to an image that voted"))
    voters = [n.index for n in diagnosis.neighbours if n.index < len(gallery_xy)]
    rows = sample_rows(len(gallery_xy), always=voters)
    for index, name in enumerate(class_names):
        mine = rows[labels[rows] == index]
        has_voted = np.isin(mine, voters)
        style = {
            "symbol": class_symbol(name, class_names, diagnosis.disease_class),
            "color": class_colour(name, class_names, diagnosis.disease_class),
        }
        for part, marker in ((mine[~has_voted], _QUIET), (mine[has_voted], _VOTED)):
            _add_points(figure, gallery_xy, part, keys, name=label(name), marker=style | marker)
    _add_query(figure, diagnosis, name=_("this image"))
    figure.update_layout(**_MAP_LAYOUT)
    return figure


_BAR_LAYOUT = {
    "barmode": "stack",
    "height": 74,
    "margin": {"l": 14, "r": 24, "t": 4, "b": 22},
    "showlegend": False,
    "xaxis": {
        "range": [0, 1],
        "tickvals": [0, 0.5, 1],
        "ticktext": ["0", "50 %", "100 %"],
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
    },
    "yaxis": {"fixedrange": True, "visible": False},
}
_MAP_LAYOUT = {
    "height": 460,
    "margin": {"l": 4, "r": 4, "t": 4, "b": 4},
    "legend": {
        "orientation": "h",
        "y": -0.03,
        "x": 0.5,
        "xanchor": "center",
        "itemsizing": "constant",
    },
    "xaxis": {"visible": False},
    "yaxis": {"visible": False, "scaleanchor": "x"},
    "hovermode": "closest",
    "dragmode": "pan",
}


def list_rows(points: Sequence[Mapping[str, Any]]) -> list[int]:
    """The gallery rows of selected points; a star or a line has none."""
    rows = [point["customdata"] for point in points if "customdata" in point]
    return [int(row[0] if isinstance(row, list | tuple) else row) for row in rows]


def sample_rows(n_rows: int, *, always: Sequence[int]) -> NDArray[np.int64]:
    """Rows to draw, ascending: all up to the limit, else a fixed sample with all of ``always``."""
    if n_rows <= MAX_MAP_POINTS:
        return np.arange(n_rows, dtype=np.int64)
    kept = np.unique(np.asarray(always, dtype=np.int64))
    rest = np.setdiff1d(np.arange(n_rows, dtype=np.int64), kept)
    drawn = np.random.default_rng(0).choice(rest, MAX_MAP_POINTS - len(kept), replace=False)
    return np.sort(np.concatenate([kept, drawn]))


def _add_lines(
    figure: go.Figure, diagnosis: Diagnosis, gallery_xy: NDArray[np.float32], *, name: str
) -> None:
    if diagnosis.map_xy is None:
        return
    x0, y0 = diagnosis.map_xy
    xs: list[float | None] = []
    ys: list[float | None] = []
    on_map = [n for n in diagnosis.neighbours if n.index < len(gallery_xy)]
    for neighbour in on_map:  # a member's image that the lead does not know has no place
        x1, y1 = gallery_xy[neighbour.index].tolist()
        xs += [x0, x1, None]
        ys += [y0, y1, None]
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="lines",
        name=name,
        hoverinfo="skip",
        line={"color": LINE_COLOUR, "width": 1.2},
    )


def _add_points(
    figure: go.Figure,
    xy: NDArray[np.float32],
    rows: NDArray[np.int64],
    keys: Sequence[str],
    *,
    name: str,
    marker: dict[str, object],
) -> None:
    """One class's points; those that voted carry an outline and stay out of the legend."""
    shown = html.escape(name)
    figure.add_scatter(
        x=xy[rows, 0],
        y=xy[rows, 1],
        mode="markers",
        name=shown,
        legendgroup=shown,
        showlegend="line" not in marker,
        customdata=rows.tolist(),
        text=[html.escape(keys[row]) for row in rows.tolist()],
        hovertemplate="%{text}<br>" + shown + "<extra></extra>",
        marker=marker,
    )


def _add_query(figure: go.Figure, diagnosis: Diagnosis, *, name: str) -> None:
    if diagnosis.map_xy is None:
        return
    figure.add_scatter(
        x=[diagnosis.map_xy[0]],
        y=[diagnosis.map_xy[1]],
        mode="markers",
        name=name,
        hovertemplate=name + "<extra></extra>",
        marker={
            "symbol": "star",
            "size": 20,
            "color": QUERY_COLOUR,
            "line": {"width": 1.5, "color": "#ffffff"},
        },
    )
