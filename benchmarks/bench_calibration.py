"""Calibration error before and after, and accuracy at 90 % and 80 % coverage, on test images.

For each data set and trained model, the raw vote is computed on validation and test; the
calibration is fitted on validation only (temperature or isotonic, chosen by cross-validation) and
evaluated on test. ``ece_before`` is for the raw vote, ``ece_after`` for the calibrated probability.

    PYTHONPATH=. NEIGHBORDX_CHECKPOINTS=checkpoints python benchmarks/bench_calibration.py \\
        --model kermany=cxr --model idrid=idrid --model busi=busi
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from core.answers.reliability import compute_coverage
from core.assessment.predict_split import SplitReading, read_split
from core.config import Settings
from core.data.datasets import read_dataset
from core.models.bundle import ModelBundle
from core.models.ensemble import Model
from core.models.registry import load_bundle
from core.stats import metrics
from core.stats.calibration import Calibration, _fit_isotonic, _fit_temperature, fit_calibration

SETS = {"kermany": "kermany_cxr_1639", "idrid": "idrid", "busi": "busi"}
SEED = 0


def drop_calibration(model: Model) -> Model:
    """Return the model with each member's raw vote as its probability."""
    if isinstance(model, ModelBundle):
        return _drop(model)
    members = tuple(dataclasses.replace(m, bundle=_drop(m.bundle)) for m in model.members)
    return dataclasses.replace(model, members=members)


def _drop(bundle: ModelBundle) -> ModelBundle:
    k = bundle.contents.calibration.k
    raw = Calibration(1.0, k, method="isotonic", scores=(0.0, 1.0), probabilities=(0.0, 1.0))
    return dataclasses.replace(
        bundle, contents=dataclasses.replace(bundle.contents, calibration=raw)
    )


def judge(truth: np.ndarray, probs: np.ndarray) -> dict[str, float]:
    """Compute the test metrics of one set of probabilities."""
    report = metrics.compute_metrics(truth, probs)
    return {
        "ece": report.ece,
        "brier": report.brier,
        "accuracy": report.accuracy,
        "accuracy_at_90": compute_coverage(truth, probs, share=0.9).accuracy,
        "accuracy_at_80": compute_coverage(truth, probs, share=0.8).accuracy,
    }


def measure(model: Model, val: SplitReading, test: SplitReading) -> dict[str, Any]:
    """Fit each member on validation, combine, evaluate on test; both methods and the chosen one."""
    mixed: dict[str, list[np.ndarray]] = {"chosen": [], "temperature": [], "isotonic": []}
    fits = []
    for member, known, seen in zip(model.members, val.member_p, test.member_p, strict=True):
        k = member.bundle.contents.calibration.k
        fitted = fit_calibration(val.truth, known, k=k, groups=val.groups, seed=SEED)
        fits.append({"model": member.bundle.model_id, **_describe(fitted)})
        mixed["chosen"].append(fitted.apply(seen))
        mixed["temperature"].append(_fit_temperature(val.truth, known, k).apply(seen))
        mixed["isotonic"].append(_fit_isotonic(val.truth, known, k).apply(seen))
    weights = [member.weight for member in model.members]
    judged = {
        name: judge(test.truth, np.average(answers, axis=0, weights=weights))
        for name, answers in mixed.items()
    }
    raw, chosen = judge(test.truth, test.p_disease), judged.pop("chosen")
    return {
        "model": model.model_id,
        "n_val": len(val.truth),
        "n_test": len(test.truth),
        "ece_before": raw["ece"],
        "ece_after": chosen["ece"],
        "accuracy": chosen["accuracy"],
        "accuracy_at_90": chosen["accuracy_at_90"],
        "accuracy_at_80": chosen["accuracy_at_80"],
        "brier_before": raw["brier"],
        "brier_after": chosen["brier"],
        "by_method": judged,
        "members": fits,
    }


def _describe(fitted: Calibration) -> dict[str, Any]:
    """Describe the fit on validation, without the curve itself."""
    record = dataclasses.asdict(fitted)
    return {key: value for key, value in record.items() if key not in ("scores", "probabilities")}


def main() -> None:
    """Measure every requested model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", action="append", required=True, help="SET=MODEL; SET or a path")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/calibration.json"))
    options = parser.parse_args()
    settings, began = Settings.from_env(), time.monotonic()
    results = {}
    for pair in options.model:
        name, _, model_id = pair.partition("=")
        root = options.data / SETS[name] if name in SETS else Path(name)
        model = load_bundle(settings.checkpoints_dir, model_id, settings=settings)
        run = model.lead.config.run.train
        dataset = read_dataset(root, val_fraction=run.val_fraction, seed=run.seed)
        plain = drop_calibration(model)
        val, test = (read_split(plain, dataset, split=split) for split in ("val", "test"))
        results[name] = measure(plain, val, test)
        print(name, json.dumps(results[name]["by_method"]), flush=True)
    document = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "timm", "numpy", "scikit-learn")},
        "seed": SEED,
        "seconds": round(time.monotonic() - began, 1),
        "data_sets": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_suffix(".writing")
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, options.out)


if __name__ == "__main__":
    main()
