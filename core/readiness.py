"""May training start on this data? The audit's findings, weighed.

Owns which finding stops training and which only warns. Each has a code and numbers, so that pages
can say it in their language, and the keys of the images to look at.
"""

from dataclasses import dataclass
from typing import Literal

from core.audit import AuditReport, Duplicates

_MIN_TRAIN = 8  # per class: fewer cannot fill a batch of both classes with different images
_MIN_VAL = 2
_FEW = 30
_UNBALANCED = 5


@dataclass(frozen=True)
class Finding:
    """One thing to know before training. ``keys`` are groups of images that belong together."""

    code: str
    severity: Literal["blocker", "warning"]
    message: str
    params: dict[str, str | int]
    keys: tuple[tuple[str, ...], ...] = ()


def judge(report: AuditReport) -> tuple[Finding, ...]:
    """Weigh an audit, what stops training first."""
    found = [*_judge_counts(report), *_judge_duplicates(report), *_judge_rest(report)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "blocker"))


def _judge_counts(report: AuditReport) -> list[Finding]:
    bad = {key for key, _ in report.unreadable}
    found = []
    for split, counts in report.counts.items():
        needed = {"train": _MIN_TRAIN, "val": _MIN_VAL}.get(split, 1)
        for name, n in counts.items():
            # a key of an unreadable file names its class folder
            readable = n - sum(f"/{name}/" in f"/{key}" and split in key for key in bad)
            params: dict[str, str | int] = {
                "class_name": name, "split": split, "n": readable, "needed": needed,
            }  # fmt: skip
            if readable < needed and split != "test":
                text = f"class {name!r} has {readable} readable images in {split}; {needed} needed."
                found.append(Finding("too_few", "blocker", text, params))
            elif readable < _FEW:
                text = f"class {name!r} has only {readable} images in {split}: expect rough figures"
                found.append(Finding("few", "warning", text, params))
        least, most = min(counts.values()), max(counts.values())
        if most > _UNBALANCED * max(1, least):
            text = f"the classes of {split} are unbalanced, {least} against {most}."
            found.append(
                Finding("unbalanced", "warning", text, {"split": split, "a": least, "b": most})
            )
    if "test" not in report.counts:
        text = "there is no test split: the finished model has validation figures only."
        found.append(Finding("no_test", "warning", text, {}))
    return found


def _judge_duplicates(report: AuditReport) -> list[Finding]:
    found = []
    for kind, groups in (("exact", report.exact_duplicates), ("near", report.near_duplicates)):
        for code, chosen in (
            ("labels", [g for g in groups if g.across_labels]),
            ("leak", [g for g in groups if g.across_splits]),
            ("repeats", [g for g in groups if not (g.across_labels or g.across_splits)]),
        ):
            if chosen:
                found.append(_say_duplicates(kind, code, chosen))
    return found


def _say_duplicates(kind: str, code: str, groups: list[Duplicates]) -> Finding:
    sentence = {
        "labels": "carry different labels: at most one of them is right.",
        "leak": "lie in more than one split: figures will be too good.",
        "repeats": "show the same.",
    }[code]
    return Finding(
        f"{kind}_{code}",
        "warning",
        f"{len(groups)} groups of {kind} duplicates {sentence}",
        {"n": len(groups)},
        tuple(group.keys for group in groups),
    )


def _judge_rest(report: AuditReport) -> list[Finding]:
    found = []
    if report.unreadable:
        text = f"{len(report.unreadable)} files cannot be read and will be left out."
        params: dict[str, str | int] = {
            "n": len(report.unreadable), "key": report.unreadable[0][0],
            "reason": report.unreadable[0][1],
        }  # fmt: skip
        found.append(Finding("unreadable", "warning", text, params))
    if report.groups_across_splits:
        n = len(report.groups_across_splits)
        text = f"{n} patient names occur in more than one split: figures may be too good."
        found.append(
            Finding("patients", "warning", text, {"n": n, "name": report.groups_across_splits[0]})
        )
    return found
