"""Time to compute the results of a saved evaluation from its stored embeddings and answers.

    PYTHONPATH=. python benchmarks/bench_evaluation.py --models MODELS --model NAME \\
        [--evaluation DATA-SPLIT]

First run ``python -m core evaluate --model NAME --data DATA``. Times everything that the Evaluate
page and the report compute without running the model. Writes results/evaluation.json.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from core.assessment.store import list_evaluations, load_evaluation
from core.config import Settings
from core.export import evaluation_report
from core.files.whole import write_text
from core.gallery.k_search import search_k
from core.gallery.voting import cast_votes
from core.models.registry import load_bundle
from core.stats import curves, headlines, subgroups

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--evaluation", default=None)
    parser.add_argument("--out", type=Path, default=RESULTS / "evaluation.json")
    arguments = parser.parse_args()
    name = arguments.evaluation or list_evaluations(arguments.models, arguments.model)[0].name
    seconds: dict[str, float] = {}
    cpu: dict[str, float] = {}  # CPU seconds, because other work may share the core

    def clock(what: str, work: Callable[[], Any]) -> Any:
        began, worked = time.monotonic(), time.process_time()
        outcome = work()
        seconds[what] = round(time.monotonic() - began, 3)
        cpu[what] = round(time.process_time() - worked, 3)
        return outcome

    kept = clock("load", lambda: load_evaluation(arguments.models, arguments.model, name))
    truth, probs, groups = kept.is_disease, kept.p_disease, kept.groups
    clock("headlines", lambda: headlines.compute_headlines(truth, probs, groups=groups))
    clock("curves", lambda: curves.compute_curves(truth, probs))
    clock("reliability", lambda: curves.compute_reliability(truth, probs))
    clock("coverage", lambda: curves.compute_coverage(truth, probs))
    for column, values in kept.columns.items():
        if subgroups.can_split(values):
            clock(
                f"by {column}", lambda v=values: subgroups.split_by(truth, probs, v, groups=groups)
            )
    model = load_bundle(arguments.models, arguments.model, settings=Settings(n_threads=1))
    for member, rows in zip(model.members, kept.embeddings, strict=True):
        if not member.bundle.has_vote:
            continue
        bundle = member.bundle
        disease = bundle.config.disease_index
        labels = np.where(truth, disease, 1 - disease).astype(np.int64)
        clock(
            f"votes of {bundle.model_id}",
            lambda b=bundle, r=rows: cast_votes(b.gallery, r, b.n_shown),
        )
        clock(
            f"K curve of {bundle.model_id}",
            lambda b=bundle, r=rows, y=labels, d=disease: search_k(
                b.gallery, r, y, candidates=b.config.run.knn.k_candidates, disease_index=d
            ),
        )
    built = clock(
        "report", lambda: evaluation_report.build_report(arguments.models, arguments.model, name)
    )
    clock("html", lambda: evaluation_report.to_html(built))
    clock("pdf", lambda: evaluation_report.to_pdf(built))
    result = {
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        },
        "versions": {p: importlib.metadata.version(p) for p in ("numpy", "scikit-learn")},
        "n": len(kept.keys),
        "seconds": seconds,
        "total": round(sum(seconds.values()), 2),
        "cpu_seconds": cpu,
        "cpu_total": round(sum(cpu.values()), 2),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
