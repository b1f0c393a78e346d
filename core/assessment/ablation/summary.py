"""Summarise an ablation: means over seeds, paired tests, the Markdown table.

Owns the statistics and their wording; trains nothing and reads no files.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.stats import metrics
from core.stats.paired_tests import (
    Interval,
    compare_aurocs,
    compare_calls,
    compute_interval,
    write_p,
)
from core.stats.proportions import find_clusters


def _gather(rows: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return sorted((r for r in rows if r["system"] == key), key=lambda r: int(r["seed"]))


def _stack(rows: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Stack probabilities as (S, N); every seed must have the same images."""
    return np.array([row["predictions"]["p_disease"] for row in rows], dtype=np.float64)


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Summarise each system in one row: means over seeds with 95 % intervals.

    Args:
        rows: runs and floors; all seeds of a system were tested on the same images.

    Returns:
        In the order of the runs: ``system, label, n_seeds, accuracy, auroc`` (``mean, low, high``
        each), ``seconds_train`` and ``seconds_per_image`` (None if nothing was timed).
    """
    summary = []
    for key in dict.fromkeys(row["system"] for row in rows):
        mine = _gather(rows, key)
        accuracy, auroc = _measure_over_seeds(mine)
        timed = [row for row in mine if "seconds_train" in row]
        summary.append(
            {
                "system": key,
                "label": mine[-1]["label"],
                "n_seeds": len(mine),
                "accuracy": dataclasses.asdict(accuracy),
                "auroc": dataclasses.asdict(auroc),
                "seconds_train": float(np.mean([r["seconds_train"]["fit"] for r in timed]))
                if timed
                else None,
                "seconds_per_image": float(np.mean([r["seconds_per_image"] for r in timed]))
                if timed
                else None,
            }
        )
    return summary


def _measure_over_seeds(rows: Sequence[dict[str, Any]]) -> tuple[Interval, Interval]:
    probs = _stack(rows)
    truth = np.array(rows[0]["predictions"]["is_disease"], dtype=bool)
    clusters = find_clusters(rows[0]["predictions"]["groups"], len(truth))

    def accuracy(seeds: NDArray[np.int64], images: NDArray[np.int64]) -> float:
        return float(np.mean((probs[seeds][:, images] > 0.5) == truth[images]))

    def auroc(seeds: NDArray[np.int64], images: NDArray[np.int64]) -> float:
        chosen = truth[images]
        if chosen.all() or not chosen.any():
            return float("nan")
        return float(np.mean([metrics.rank_auroc(chosen, row) for row in probs[seeds][:, images]]))

    return (
        compute_interval(accuracy, n_seeds=len(probs), clusters=clusters),
        compute_interval(auroc, n_seeds=len(probs), clusters=clusters),
    )


def compare_pairs(
    runs: Sequence[dict[str, Any]], floors: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Compare each system with system 1 and the floors: tests per seed, overall difference."""
    rows = [*runs, *floors]
    keys = list(dict.fromkeys(row["system"] for row in runs))
    references = [key for key in ("1", "knn_frozen", "logreg_frozen") if _gather(rows, key)]
    tests = []
    for key in keys:
        for reference in references:
            if key != reference:
                tests.append(_test_pair(_gather(rows, key), _gather(rows, reference)))
    return tests


def _test_pair(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> dict[str, Any]:
    a, b = _stack(first), _stack(second)
    truth = np.array(first[0]["predictions"]["is_disease"], dtype=bool)
    groups = first[0]["predictions"]["groups"]
    clusters = find_clusters(groups, len(truth))

    def gain(seeds: NDArray[np.int64], images: NDArray[np.int64]) -> float:
        right = [(p[seeds][:, images] > 0.5) == truth[images] for p in (a, b)]
        return float(np.mean(right[0]) - np.mean(right[1]))

    difference = compute_interval(gain, n_seeds=len(a), clusters=clusters)
    return {
        "system": first[0]["system"],
        "against": second[0]["system"],
        "accuracy_difference": dataclasses.asdict(difference),
        "mcnemar": [
            dataclasses.asdict(compare_calls(truth, x, y, groups=groups))
            for x, y in zip(a, b, strict=True)
        ],
        "delong": [
            dataclasses.asdict(compare_aurocs(truth, x, y, groups=groups))
            for x, y in zip(a, b, strict=True)
        ],
    }


def write_table(result: dict[str, Any]) -> str:
    """Format the summary as a Markdown table, followed by the tests."""
    preset = " ".join([result["preset"], *result["overrides"]])
    seeds = "1 seed" if result["n_seeds"] == 1 else f"{result['n_seeds']} seeds"
    lines = [
        f"# Ablation on {result['data_name']}, preset {preset}, {seeds}",
        "",
        "Mean over seeds; 95 % intervals from resampling seeds and test patients.",
        "",
        "| system | accuracy | AUROC | training without trunks, s | inference, s per image |",
        "|---|---|---|---|---|",
    ]
    for row in result["summary"]:
        times = [
            f"{row[key]:.{digits}f}" if row[key] is not None else ""
            for key, digits in (("seconds_train", 0), ("seconds_per_image", 3))
        ]
        cells = [
            f"{row['system']}: {row['label']}",
            _say_interval(row["accuracy"]),
            _say_interval(row["auroc"]),
            *times,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| pair | accuracy difference | McNemar p by seed | DeLong p by seed |",
        "|---|---|---|---|",
    ]
    for test in result["tests"]:
        p_values = [
            ", ".join(write_p(one["p_value"]) for one in test[kind])
            for kind in ("mcnemar", "delong")
        ]
        cells = [
            f"{test['system']} against {test['against']}",
            _say_interval(test["accuracy_difference"]),
            *p_values,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _say_interval(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
