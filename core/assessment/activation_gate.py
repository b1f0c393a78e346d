"""Which model is in use: the activation gate, the history of decisions, and roll-back.

Owns ``checkpoints/activations.json``, which is append-only. The gate compares the candidate with
the active model on the same images: a saved comparison on test images unseen by both models if
there is one, otherwise the validation images that both held out.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from core.assessment.model_comparison import Comparison, find_comparison
from core.assessment.store import find_gallery_id
from core.config import build_record
from core.errors import CheckpointError, ConfigError
from core.files.whole import write_text
from core.models import registry
from core.models.bundle_files import read_bundle_config, read_json
from core.models.ensemble import mix_validation
from core.models.registry import ModelSummary, find_model
from core.stats.metrics import rank_auroc

LIMIT = 0.02  # accuracy and AUROC may be lower by this much
_FILE = "activations.json"
_MEASURED = {
    "comparison": "comparison on test images that neither knew",
    "validation": "validation",
}
_SET_ASIDE = {
    "split": "The kept comparison does not count: it was not made on test images.",
    "known": "The kept comparison does not count: one of the models was trained or validated on "
    "some of its images.",
    "gallery": "The kept comparison does not count: a gallery was corrected since.",
    "older": "The kept comparison does not count: it does not say whether the models knew its "
    "images.",
}
MIN_REASON = 10  # characters
_PATIENCE_S = 30.0  # waiting for another process's decision


@dataclass(frozen=True)
class Verdict:
    """The gate's verdict on a candidate; the pages translate it by its ``code``."""

    candidate: str
    current: str  # empty if no model is in use
    passed: bool
    code: str  # first, same, passed, worse, harmed, incomparable
    evidence: str  # comparison, validation, or empty
    limit: float
    n: int = 0
    accuracy_change: float = 0.0  # candidate minus current
    auroc_change: float = 0.0
    harmed: str = ""  # subgroups, as column=value
    message: str = ""
    set_aside: str = ""  # why a saved comparison does not count: split, known, gallery, older


@dataclass(frozen=True)
class Activation:
    """One line of the history."""

    time: str  # ISO 8601, UTC
    model_id: str
    weights_sha256: str
    previous: str
    action: str  # activate, override, roll-back
    reason: str
    gate: str  # the verdict's code
    message: str
    previous_sha256: str = ""  # of the previous model's parameters; empty in older entries


def check_gate(directory: Path, candidate: str, *, limit: float = LIMIT) -> Verdict:
    """Compare a candidate with the active model.

    Args:
        directory: the checkpoints folder.
        candidate: a listed model.
        limit: accuracy and AUROC may be lower by at most this.

    Raises:
        CheckpointError: there is no such model, or it cannot be loaded.
    """
    new = find_model(directory, candidate)
    if new.problem:
        raise CheckpointError(new.problem, code="checkpoint.damaged")
    current = registry.active_model_id(directory)
    if current is None or current == candidate:
        code = "first" if current is None else "same"
        text = "no other model is in use."
        return Verdict(candidate, current or "", True, code, "", limit, message=text)
    old = find_model(directory, current)
    if set(old.class_names) != set(new.class_names) or old.disease_class != new.disease_class:
        return _incomparable(old, new, limit, "they answer on different classes")
    found = find_comparison(
        directory, (old.model_id, old.weights_sha256), (new.model_id, new.weights_sha256)
    )
    set_aside = _find_objection(directory, found, (old, new)) if found else ""
    if found is None or set_aside:
        verdict = _check_validation(directory, old, new, limit)
        words = f" {_SET_ASIDE[set_aside]}" if set_aside else ""
        return replace(verdict, set_aside=set_aside, message=verdict.message + words)
    changes = (found.accuracy_second - found.accuracy_first, -found.delong.difference)
    harmed = ", ".join(f"{s.column}={s.value}" for s in found.subgroups if s.is_harmed)
    return _weigh(old, new, limit, "comparison", found.n, changes, harmed)


def _find_objection(
    directory: Path, found: Comparison, models: tuple[ModelSummary, ModelSummary]
) -> str:
    """Why a saved comparison is not valid evidence, as a key of _SET_ASIDE; empty if it is."""
    if found.split != "test":
        return "split"
    if found.n_known is None:
        return "older"
    if found.n_known:
        return "known"
    galleries = tuple(find_gallery_id(directory, model) for model in models)
    return "" if galleries == (found.first_gallery, found.second_gallery) else "gallery"


def _check_validation(
    directory: Path, old: ModelSummary, new: ModelSummary, limit: float
) -> Verdict:
    """The verdict if there is no valid comparison."""
    first, second = (_read_answers(directory, summary) for summary in (old, new))
    if first is None or second is None or first[0] != second[0]:
        return _incomparable(old, new, limit, "they share no validation images")
    (_, truth, p_old), (_, truth_new, p_new) = first, second
    if not np.array_equal(truth, truth_new):
        return _incomparable(old, new, limit, "they name other classes for the same images")
    accuracy = float(np.mean((p_new > 0.5) == truth) - np.mean((p_old > 0.5) == truth))
    auroc = rank_auroc(truth, p_new) - rank_auroc(truth, p_old)
    return _weigh(old, new, limit, "validation", len(truth), (accuracy, auroc), "")


def _weigh(
    old: ModelSummary,
    new: ModelSummary,
    limit: float,
    evidence: str,
    n: int,
    changes: tuple[float, float],
    harmed: str,
) -> Verdict:
    passed = min(changes) >= -limit and not harmed
    code = "passed" if passed else "worse" if min(changes) < -limit else "harmed"
    text = (
        f"on the same {n} images ({_MEASURED[evidence]}), accuracy changes by {changes[0]:+.3f} "
        f"and AUROC by {changes[1]:+.3f}; each may fall by {limit:.3f}."
    )
    if harmed:
        text += f" Worse in subgroups: {harmed}."
    return Verdict(
        new.model_id, old.model_id, passed, code, evidence, limit, n, *changes, harmed, text
    )


def _incomparable(old: ModelSummary, new: ModelSummary, limit: float, why: str) -> Verdict:
    text = (
        f"{new.model_id!r} cannot be held against {old.model_id!r}: {why}. Compare them on one "
        "test set first."
    )
    return Verdict(
        new.model_id, old.model_id, False, "incomparable", "", limit, message=text
    )  # without a measurement, the gate does not pass


_Answers = tuple[list[str], NDArray[np.bool_], NDArray[np.float64]]


def _read_answers(directory: Path, summary: ModelSummary) -> _Answers | None:
    """Keys, labels and probabilities of a model's validation images, mixed in an ensemble."""
    names = summary.members or (summary.model_id,)
    stored = [read_json(directory / name / "metrics.json") for name in names]
    data_ids = [read_bundle_config(directory / name).data_id for name in names]
    weights = [metrics.get("validation", {}).get("accuracy", 1.0) for metrics in stored]
    mixed = mix_validation(stored, data_ids=data_ids, weights=weights)
    if mixed is None:
        return None
    # the same name in other data is a different image
    keys = [f"{data_ids[0]}:{key}" for key in mixed["keys"]]
    return keys, np.array(mixed["is_disease"], dtype=np.bool_), mixed["p_disease"]


def activate(
    directory: Path, candidate: str, *, reason: str = "", limit: float = LIMIT
) -> Activation:
    """Activate a model and record the reason.

    Args:
        directory: the checkpoints folder.
        candidate: a listed model.
        reason: a sentence, required if the gate does not pass.
        limit: passed on to the gate.

    Raises:
        CheckpointError: there is no such model, it cannot be loaded, or another process is
            activating one.
        ConfigError: the gate does not pass and no reason is given.
    """
    with _hold(directory):
        verdict = check_gate(directory, candidate, limit=limit)
        if not verdict.passed and len(reason.strip()) < MIN_REASON:
            raise ConfigError(
                f"the gate does not pass: {verdict.message} To activate it all the same, give a "
                f"reason of at least {MIN_REASON} characters (--reason); it is written down.",
                code="gate.reason",
                params={"message": verdict.message},
            )
        action = "activate" if verdict.passed else "override"
        return _write(directory, candidate, action, reason, verdict.code, verdict.message)


def roll_back(directory: Path, *, reason: str = "") -> Activation:
    """Reactivate the model that was in use before the last activation.

    Raises:
        CheckpointError: there is no earlier model, it is missing, damaged or retrained, or another
            process is activating one. Then nothing is changed or recorded.
    """
    with _hold(directory):
        past = read_history(directory)
        undone = _find_undone(past)
        if undone is None or not undone.previous:
            raise CheckpointError(
                "there is no earlier model to go back to.", code="checkpoint.no_previous"
            )
        target = undone.previous
        _check_same_as_then(find_model(directory, target), undone, past)
        return _write(directory, target, "roll-back", reason, "", "")


def find_previous(directory: Path) -> str | None:
    """The model that a roll-back would activate; None if there is none."""
    undone = _find_undone(read_history(directory))
    return (undone.previous or None) if undone else None


def _find_undone(past: list[Activation]) -> Activation | None:
    """The activation a roll-back would undo, taking earlier roll-backs into account."""
    pile: list[Activation] = []
    for entry in past:
        if entry.action == "roll-back":
            pile.pop()
        else:
            pile.append(entry)
    return pile[-1] if pile else None


def _check_same_as_then(
    summary: ModelSummary, undone: Activation, past: Sequence[Activation]
) -> None:
    """Check that the model can be loaded and is the one that was in use before."""
    if summary.problem:
        raise CheckpointError(
            f"model {summary.model_id!r} was in use before, but cannot be loaded: "
            f"{summary.problem}",
            code="checkpoint.damaged",
            params={"model_id": summary.model_id, "reason": summary.problem},
        )
    used = [e.weights_sha256 for e in past if e.model_id == summary.model_id]
    then = undone.previous_sha256 or (used[-1] if used else "")
    if then and then != summary.weights_sha256:
        raise CheckpointError(
            f"model {summary.model_id!r} is not the one that was in use before: it was made anew "
            "under this name. Activate it through the gate.",
            code="checkpoint.replaced",
            params={"model_id": summary.model_id},
        )


def _write(
    directory: Path, model_id: str, action: str, reason: str, gate: str, message: str
) -> Activation:
    summary, previous = find_model(directory, model_id), registry.active_model_id(directory) or ""
    listed = {m.model_id: m.weights_sha256 for m in registry.list_models(directory)}
    entry = Activation(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        model_id=model_id,
        weights_sha256=summary.weights_sha256,
        previous=previous,
        action=action,
        reason=reason.strip(),
        gate=gate,
        message=message,
        previous_sha256=listed.get(previous, ""),
    )
    past = [dataclasses.asdict(one) for one in read_history(directory)]
    told = json.dumps([*past, dataclasses.asdict(entry)], indent=2, ensure_ascii=False)
    write_text(directory / _FILE, told)  # first, so that no activation goes unrecorded
    try:
        registry.activate(directory, model_id)
    except BaseException:  # and none is recorded that did not happen
        write_text(directory / _FILE, json.dumps(past, indent=2, ensure_ascii=False))
        raise
    return entry


def read_history(directory: Path) -> list[Activation]:
    """Every activation, oldest first.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = directory / _FILE
    if not path.is_file():
        return []
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        return [build_record(Activation, entry, _FILE) for entry in raw]
    except (ValueError, TypeError, ConfigError) as err:
        raise CheckpointError(
            f"{path} is damaged ({err}); restore it from a copy, or move it away.",
            code="checkpoint.history",
        ) from err


@contextmanager
def _hold(directory: Path) -> Iterator[None]:
    lock = FileLock(directory / ".activation.lock")
    try:
        lock.acquire(timeout=_PATIENCE_S)
    except Timeout as err:
        raise CheckpointError(
            "another process is putting a model to use; try again in a moment.",
            code="checkpoint.busy",
        ) from err
    try:
        yield
    finally:
        lock.release()
