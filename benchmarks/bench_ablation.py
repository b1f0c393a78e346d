"""Systems 1, 4, 5 and 6 of the report on the real data sets, three seeds, test split.

    PYTHONPATH=. python benchmarks/bench_ablation.py --data ../shared/data [--only idrid ...]

Runs what ``python -m core ablation`` runs; a killed run continues where it stopped. For each data
set it writes results/ablation_<data>.json (every run, means with intervals, paired tests; without
the answers to single images), the same as a Markdown table, and results/accuracy_<data>.json
(systems 4 and 5 compared with the frozen baselines). A missing data set is reported and skipped.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness

from core.assessment.ablation import run_ablation, write_table
from core.config import Settings
from core.data.options import DataOptions
from core.files.whole import write_text


@dataclass(frozen=True)
class Case:
    """One data set: its folder, the systems, and overrides of the preset."""

    path: str
    systems: tuple[str, ...] = ("1", "4", "5", "6")
    overrides: tuple[str, ...] = ()
    options: DataOptions = field(default_factory=DataOptions)
    is_judged: bool = True  # whether to compare the vote with the baselines, in a separate file


SETS = {
    "kermany_cxr_1639": Case("kermany_cxr_1639"),
    "idrid": Case("idrid"),
    # The smallest set is also used for the expensive questions: input size, views, a weak member.
    "idrid_extras": Case(
        "idrid", ("4", "6", "4-small", "4-one-view", "weak", "6-weak"), is_judged=False
    ),
    "busi": Case("busi"),
    # Images of 28 px: an input of 288 px would add nothing over 128 px.
    "pneumoniamnist": Case(
        "pneumoniamnist/pneumoniamnist.npz",
        ("4", "5", "6"),
        ("preprocess.input_size=128",),
        options=DataOptions(classes=(("0", "normal"), ("1", "disease"))),  # 1 is pneumonia
    ),
}
FLOORS = ("knn_frozen", "logreg_frozen")
ENSEMBLE = "6"


def drop_answers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Remove the answers to single images from the rows."""
    return [{k: v for k, v in row.items() if k != "predictions"} for row in rows]


def judge_ensemble(result: dict[str, Any]) -> dict[str, Any]:
    """Summarise the vote's runs, their mean, the baselines and the paired tests against them."""
    summary = {row["system"]: row for row in result["summary"]}
    tests = {t["against"]: t for t in result["tests"] if t["system"] == ENSEMBLE}

    def figures(key: str) -> dict[str, Any]:
        return {name: summary[key][name] for name in ("accuracy", "auroc")}

    return {
        "data": result["data_name"],
        "preset": result["preset"],
        "overrides": result["overrides"],
        "runs": [row for row in drop_answers(result["runs"]) if row["system"] == ENSEMBLE],
        "mean": figures(ENSEMBLE),
        "floors": {key: figures(key) for key in FLOORS},
        "paired_p": {
            key: {
                "accuracy_difference": tests[key]["accuracy_difference"],
                "mcnemar": [one["p_value"] for one in tests[key]["mcnemar"]],
                "delong": [one["p_value"] for one in tests[key]["delong"]],
            }
            for key in FLOORS
        },
    }


def run(data: Path, name: str, *, case: Case, checkpoints: Path, n_seeds: int) -> None:
    """Run one data set and write its three files."""
    result = run_ablation(
        data,
        preset="offline",
        systems=case.systems,
        overrides=case.overrides,
        n_seeds=n_seeds,
        settings=Settings(checkpoints_dir=checkpoints),
        options=case.options,
        progress=lambda done, text: print(f"{name} {done:4.0%} {text}", flush=True),
    )
    if case.is_judged:
        harness.write_result(f"accuracy_{name}", judge_ensemble(result))
    write_text(harness.RESULTS / f"ablation_{name}.md", write_table(result))
    for key in ("runs", "floors"):
        result[key] = drop_answers(result[key])
    harness.write_result(f"ablation_{name}", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    args = parser.parse_args()
    for name in args.only:
        case = SETS[name]
        data = args.data / case.path
        if not data.exists():
            print(f"{name}: left out, {data} is not there")
            continue
        run(data, name, case=case, checkpoints=args.checkpoints, n_seeds=args.seeds)


if __name__ == "__main__":
    main()
