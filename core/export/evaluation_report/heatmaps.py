"""The report's section on explanations."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.assessment.heatmap_study import find_checked_method
from core.explanations.methods import METHODS, SHOWN
from core.export.evaluation_report.blocks import Block, Paragraph, Section, TableBlock


def build_explanations(study: Mapping[str, Any] | None) -> Section:
    """Describe the results of the heatmap study; ``study`` is None if there was none."""
    if study is None:
        return Section("Explanations", (), (Paragraph("Heatmaps were not measured."),))
    rows = tuple(
        (
            row["backbone"],
            _name(row["method"]),
            _say(row["pointing_game"], row["pointing_ci95"]),
            _say(row["energy_in_mask"], row["energy_ci95"]),
            _say(row["deletion_auc"], row["deletion_ci95"]),
            _say(row["insertion_auc"], row["insertion_ci95"]),
        )
        for row in study["rows"]
    )
    n_followed = max((row["n_faithful"] for row in study["rows"]), default=0)
    blocks: list[Block] = [
        Paragraph(
            f"Measured {study['made']['created']}: {study['n']} diseased images explained, "
            f"{study['n_masks']} with a lesion mask. "
            "Pointing game: share whose brightest point lies on the lesion. Energy: share of the "
            "brightness on it. Deletion (low is true) and insertion (high is true): mean vote "
            f"while the brightest areas go or come first, on {n_followed} of the images. 95 % "
            f"intervals over patients. The app shows {METHODS[SHOWN].name} first."
        ),
        TableBlock(
            ("backbone", "method", "pointing game", "energy", "deletion", "insertion"), rows
        ),
    ]
    checked = _name(find_checked_method(study))
    if study["randomisation"]:
        parts = ", ".join(f"{name} {value:.2f}" for name, value in study["randomisation"].items())
        blocks.append(
            Paragraph(
                f"Rank correlation of the maps by {checked} with those of a net with random "
                f"weights: {parts}."
            )
        )
    if study["agreement"] is not None:
        text = f"Agreement of the backbones' maps by {checked}: {study['agreement']:.2f}."
        blocks.append(Paragraph(text))
    return Section("Explanations", (31,), (*blocks,))


def _name(method: str) -> str:
    return METHODS[method].name if method in METHODS else method  # a baseline


def _say(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return "–"
    return f"{value:.3f} ({interval[0]:.2f} to {interval[1]:.2f})"
