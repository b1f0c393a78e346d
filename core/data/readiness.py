"""Decide whether training can start: which audit findings block it and which only warn.

Owns the severity of findings, for pages and commands alike. Each finding has a code and numbers, so
that pages can translate it, and the keys of the images to review.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from gettext import ngettext
from typing import Any, Literal

from core.data.audit import AuditReport, Duplicates, count
from core.data.datasets import Dataset
from core.errors import DataError

_MIN_TRAIN = 8  # per class: with fewer, a batch would repeat images
_MIN_VAL = 2
FEW = 30  # images of a class; with fewer, intervals are wide
_UNBALANCED = 5
_SPLITS = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Finding:
    """One issue to know before training. ``keys`` are groups of related images."""

    code: str
    severity: Literal["blocker", "warning"]
    message: str
    params: dict[str, str | int]
    keys: tuple[tuple[str, ...], ...] = ()


def read_finding(raw: Mapping[str, Any]) -> Finding:
    """Rebuild a finding from its JSON."""
    return Finding(**{**raw, "keys": tuple(tuple(group) for group in raw["keys"])})


def judge(report: AuditReport) -> tuple[Finding, ...]:
    """Judge an audit; blocking findings come first."""
    found = [
        *_judge_counts(report.readable),
        *_judge_duplicates(report),
        *_judge_rest(report),
    ]
    return _sort(found)


def judge_counts(dataset: Dataset) -> tuple[Finding, ...]:
    """Judge only the image counts, without reading any image."""
    return _sort(_judge_counts(count(dataset)))


def combine(judged: Iterable[Sequence[Finding]]) -> tuple[Finding, ...]:
    """Merge the findings of several splits of a data set, keeping the most severe of each kind.

    Args:
        judged: the result of ``judge`` for each seed of the validation split.
    """
    worst: dict[tuple[object, ...], Finding] = {}
    for finding in (one for findings in judged for one in findings):
        params = finding.params
        is_count = finding.code in ("too_few", "few")
        # "Too few" and "few" are degrees of the same finding.
        kind = "count" if is_count else finding.code
        place = (kind, params.get("split"), params.get("class_name"))
        before = worst.get(place)
        if before is None or _rank(finding) > _rank(before):
            worst[place] = finding
    return _sort(worst.values())


def _rank(finding: Finding) -> float:
    params = finding.params
    if finding.code in ("too_few", "few"):
        return -float(params["n"])
    if finding.code == "unbalanced":
        return float(params["b"]) / max(1.0, float(params["a"]))
    return float(params.get("n", 0))


def _sort(found: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda finding: finding.severity != "blocker"))


def require_ready(findings: Sequence[Finding]) -> None:
    """Refuse data that is not ready for training.

    Raises:
        DataError: a finding blocks training; the message lists all that do.
    """
    reasons = [finding.message for finding in findings if finding.severity == "blocker"]
    if reasons:
        raise DataError(
            f"training cannot start. {' '.join(reasons)}",
            code="data.not_ready",
            params={"reasons": " ".join(reasons)},
        )


def _judge_counts(readable: Mapping[str, Mapping[str, int]]) -> list[Finding]:
    found = []
    for split, counts in readable.items():
        needed = {"train": _MIN_TRAIN, "val": _MIN_VAL}.get(split, 1)
        for name, n in counts.items():
            params: dict[str, str | int] = {
                "class_name": name, "split": split, "n": n, "needed": needed,
            }  # fmt: skip
            if n < needed and split != "test":
                found.append(_describe_count("too_few", "blocker", params))
            elif n < FEW:
                found.append(_describe_count("few", "warning", params))
        least, most = min(counts.values()), max(counts.values())
        if most > _UNBALANCED * max(1, least):
            params = {"split": split, "a": least, "b": most}
            text = f"The classes of the {_SPLITS[split]} images are unbalanced: {least} to {most}."
            found.append(Finding("unbalanced", "warning", text, params))
    if "test" not in readable:
        text = "There are no test images: figures will be those of validation only."
        found.append(Finding("no_test", "warning", text, {}))
    return found


def _describe_count(
    code: str, severity: Literal["blocker", "warning"], params: dict[str, str | int]
) -> Finding:
    n, kind = int(params["n"]), _SPLITS[str(params["split"])]
    images = ngettext(f"{kind} image", f"{kind} images", n)
    sentence = {
        "too_few": f"has {n} readable {images}; {params['needed']} are needed.",
        "few": f"has only {n} {images}: figures will be rough.",
    }[code]
    return Finding(code, severity, f"Class “{params['class_name']}” {sentence}", params)


def _judge_duplicates(report: AuditReport) -> list[Finding]:
    found = []
    for kind, groups in (("exact", report.exact_duplicates), ("near", report.near_duplicates)):
        for code, chosen in (
            ("labels", [g for g in groups if g.across_labels]),
            ("leak", [g for g in groups if g.across_splits]),
            ("repeats", [g for g in groups if not (g.across_labels or g.across_splits)]),
        ):
            if chosen:
                found.append(_describe_duplicates(kind, code, chosen))
    return found


def _describe_duplicates(kind: str, code: str, groups: Sequence[Duplicates]) -> Finding:
    n = len(groups)
    sort = {"exact": "identical", "near": "nearly identical"}[kind]
    group = ngettext(f"{n} group of {sort} images", f"{n} groups of {sort} images", n)
    carry, lie = ngettext("carries", "carry", n), ngettext("lies", "lie", n)
    labels_end = "at most one of them is right." if kind == "exact" else "look at them."
    sentence = {
        "labels": f"{group} {carry} different labels: {labels_end}",
        "leak": f"{group} {lie} in more than one split: figures will be too good.",
        "repeats": f"{group}.",
    }[code]
    keys = tuple(one.keys for one in groups)
    return Finding(f"{kind}_{code}", "warning", sentence, {"n": n}, keys)


def _judge_rest(report: AuditReport) -> list[Finding]:
    found = []
    if report.unreadable:
        n = len(report.unreadable)
        key, reason = report.unreadable[0]
        text = ngettext(
            "{n} file cannot be read and will be left out: {key}: {reason}",
            "{n} files cannot be read and will be left out, first {key}: {reason}",
            n,
        )
        params: dict[str, str | int] = {"n": n, "key": key, "reason": reason}
        found.append(Finding("unreadable", "warning", text.format(**params), params))
    if report.groups_across_splits:
        n = len(report.groups_across_splits)
        text = ngettext(
            "{n} patient name occurs in more than one split, {name}: if it is the same patient, "
            "figures will be too good.",
            "{n} patient names occur in more than one split, first {name}: if they are the same "
            "patients, figures will be too good.",
            n,
        )
        params = {"n": n, "name": report.groups_across_splits[0]}
        found.append(Finding("patients", "warning", text.format(**params), params))
    return found
