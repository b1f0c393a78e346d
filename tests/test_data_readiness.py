"""Blocking findings and warnings, checked by hand; several splits judged as one."""

import dataclasses
import json

import pytest

from core.data.audit import AuditReport, Duplicates
from core.data.readiness import combine, judge, read_finding, require_ready
from core.errors import DataError


def report(**changes: object) -> AuditReport:
    """An audit without findings, with changes."""
    counts = {"train": {"normal": 40, "disease": 40}, "val": {"normal": 30, "disease": 30},
              "test": {"normal": 30, "disease": 30}}  # fmt: skip
    base = AuditReport("id", 200, counts, counts, (1, 1, 1), (1, 1, 1), {}, (), (), (), ())
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_the_weighing_of_an_audit_by_hand() -> None:
    assert judge(report()) == ()
    twice = Duplicates(("a", "b"), across_splits=True, across_labels=True)
    plain = Duplicates(("c", "d"), across_splits=False, across_labels=False)
    found = judge(
        report(
            exact_duplicates=(twice,), near_duplicates=(plain,), groups_across_splits=("p1",),
            unreadable=(("train/normal/x.png", "no"),),
        )
    )  # fmt: skip
    assert [f.code for f in found] == [
        "exact_labels", "exact_leak", "near_repeats", "unreadable", "patients",
    ]  # fmt: skip
    assert {f.severity for f in found} == {"warning"}
    assert found[0].message.startswith("1 group of identical images carries different labels")
    few = {"train": {"normal": 7, "disease": 90}, "val": {"normal": 1, "disease": 40},
           "test": {"normal": 0, "disease": 40}}  # fmt: skip
    blockers = [f for f in judge(report(readable=few)) if f.severity == "blocker"]
    assert [(f.params["split"], f.params["n"]) for f in blockers] == [("train", 7), ("val", 1)]
    assert blockers[1].message == "Class “normal” has 1 readable validation image; 2 are needed."


def test_warnings_pass_and_blockers_refuse_with_all_their_sentences() -> None:
    few = {"train": {"normal": 9, "disease": 9}, "val": {"normal": 3, "disease": 3}}
    require_ready(judge(report(readable=few)))
    worse = {"train": {"normal": 3, "disease": 9}, "val": {"normal": 1, "disease": 3}}
    with pytest.raises(DataError, match="training cannot start") as caught:
        require_ready(judge(report(readable=worse)))
    assert caught.value.code == "data.not_ready"
    assert "3 readable training images; 8 are needed" in str(caught.value)
    assert "1 readable validation image; 2 are needed" in str(caught.value)


def test_of_several_splits_the_worst_is_told_once() -> None:
    def val(n: int) -> AuditReport:
        readable = {**report().readable, "val": {"normal": n, "disease": 30}}
        return report(readable=readable)

    judged = [judge(val(n)) for n in (12, 1, 40)]
    found, unbalanced = combine(judged)
    assert unbalanced.params == {"split": "val", "a": 1, "b": 30}
    assert (found.code, found.params["n"]) == ("too_few", 1)
    (found,) = combine([judged[0], judged[2]])
    assert (found.code, found.params["n"]) == ("few", 12)
    leak = Duplicates(("a", "b"), across_splits=True, across_labels=False)
    two = judge(report(exact_duplicates=(leak, leak)))
    assert combine([judge(report(exact_duplicates=(leak,))), two]) == two
    assert combine([]) == ()


def test_a_finding_survives_json() -> None:
    leak = Duplicates(("a", "b"), across_splits=True, across_labels=False)
    (found,) = judge(report(exact_duplicates=(leak,)))
    assert read_finding(json.loads(json.dumps(dataclasses.asdict(found)))) == found
