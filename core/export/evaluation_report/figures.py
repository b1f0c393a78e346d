"""Figures of a report as PNG, drawn by matplotlib without its global state."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font

from core.stats.curves import Bin, Coverage, Curves

_BLUE, _ORANGE, _GREY = "#3f86d6", "#e07b00", "#8a8f99"
_MARKS = ("o", "D", "s", "X", "^")
_DPI = 160


def draw_roc(curves: Curves, auroc: float) -> bytes:
    """Draw the ROC curve."""
    figure, axes = _start()
    axes.plot([0, 1], [0, 1], ":", color=_GREY)
    axes.plot(curves.false_positive_rate, curves.true_positive_rate, color=_BLUE, lw=2)
    axes.text(0.97, 0.05, f"AUROC {auroc:.3f}", ha="right")
    return _finish(figure, axes, "1 − specificity", "sensitivity")


def draw_pr(curves: Curves, prevalence: float) -> bytes:
    """Draw the precision-recall curve, with the prevalence as baseline."""
    figure, axes = _start()
    axes.axhline(prevalence, ls=":", color=_GREY)
    axes.step(curves.recall, curves.precision, where="post", color=_BLUE, lw=2)
    return _finish(figure, axes, "recall (sensitivity)", "precision")


def draw_reliability(bins: Sequence[Bin]) -> bytes:
    """Draw observed frequency against predicted probability, with 95 % intervals."""
    figure, axes = _start()
    axes.plot([0, 1], [0, 1], ":", color=_GREY)
    shares = [b.observed.share or 0.0 for b in bins]
    errors = [
        [s - b.observed.low for s, b in zip(shares, bins, strict=True)],
        [b.observed.high - s for s, b in zip(shares, bins, strict=True)],
    ]
    axes.errorbar(
        [b.mean_p for b in bins], shares, yerr=errors, fmt="o-", color=_BLUE, capsize=3, lw=1.5
    )
    return _finish(figure, axes, "probability said", "share that had the disease")


def draw_coverage(rows: Sequence[Coverage]) -> bytes:
    """Draw the accuracy of the answered images against coverage."""
    figure, axes = _start()
    drawn = [row for row in rows if row.accuracy is not None]
    accuracies = [row.accuracy or 0.0 for row in drawn]
    axes.plot([row.coverage for row in drawn], accuracies, "o-", color=_BLUE, ms=4)
    _finish_limits(axes, accuracies)
    return _finish(figure, axes, "share of images answered", "accuracy of the answered", ylim=False)


def draw_robustness(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the accuracy at each level of corruption."""
    figure, axes = _start()
    clean = next(row for row in rows if row["level"] == 0)
    kinds = list(dict.fromkeys(row["kind"] for row in rows if row["level"]))
    for index, kind in enumerate(kinds):
        mine = [clean, *(row for row in rows if row["kind"] == kind)]
        axes.plot(
            [row["level"] for row in mine],
            [row["accuracy"] for row in mine],
            marker=_MARKS[index % len(_MARKS)],
            label=kind,
        )
    axes.legend(fontsize=7, frameon=False)
    _finish_limits(axes, [row["accuracy"] for row in rows])
    axes.set_xticks([0, 1, 2, 3])
    return _finish(figure, axes, "level of damage", "accuracy", xlim=False, ylim=False)


def draw_confusion(confusion: Mapping[str, int], *, disease: str, other: str) -> bytes:
    """Draw the confusion matrix; classes are named by role if the font lacks a character."""
    if not (_has_letters(disease) and _has_letters(other)):
        disease, other = "disease", "other"
    figure, axes = _start()
    table = [[confusion["tp"], confusion["fn"]], [confusion["fp"], confusion["tn"]]]
    axes.imshow(table, cmap="Blues", vmin=0, vmax=max(confusion.values()) * 1.6 or 1)
    for row, counts in enumerate(table):
        for column, count in enumerate(counts):
            axes.text(column, row, str(count), ha="center", va="center", fontsize=14)
    axes.set_xticks([0, 1], [disease, other])
    axes.set_yticks([0, 1], [disease, other], rotation=90, va="center")
    return _finish(figure, axes, "called", "truth", xlim=False, ylim=False)


def _has_letters(text: str) -> bool:
    """Whether the figures' font can draw a text."""
    letters = FT2Font(findfont("DejaVu Sans")).get_charmap()
    return all(ord(letter) in letters for letter in text)


def _start() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.4, 2.9), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=8)
    return figure, axes


def _finish_limits(axes: Axes, accuracies: Sequence[float]) -> None:
    axes.set_ylim(max(0.0, min(accuracies, default=0.0) - 0.05), 1.01)


def _finish(
    figure: Figure, axes: Axes, x: str, y: str, *, xlim: bool = True, ylim: bool = True
) -> bytes:
    if xlim:
        axes.set_xlim(-0.02, 1.02)
    if ylim:
        axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
