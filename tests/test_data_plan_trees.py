"""Properties that hold for every data folder, tried on random trees."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from trees import TREES, build

from core.data import folder_words
from core.data.class_names import is_number
from core.data.options import DataOptions, Role
from core.data.plan import SPLITS, Plan, make_plan
from core.errors import DataError

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def plan_of(tree: list[tuple[str, ...]], options: DataOptions | None = None) -> Plan | None:
    """The plan of a tree; None if it is refused with an error of ours."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), tree)
        try:
            return make_plan(Path(folder), options)
        except DataError:
            return None


@QUICK
@given(TREES)
def test_every_image_has_one_place_and_no_system_file_is_one(tree: list[tuple[str, ...]]) -> None:
    plan = plan_of(tree)
    if plan is None:
        return
    assert len({one.key for one in plan.found}) == len(plan.found)
    for one in plan.found:
        one.key.encode()
        one.class_name.encode()
        assert one.split in ("", *SPLITS)
        folders = one.key.split("/")[:-1]
        assert not any(map(folder_words.is_system_folder, folders))
        assert not any(map(folder_words.is_mask_folder, folders))
    for decision in plan.decisions:
        assert decision.sentence
        decision.sentence.encode()


@QUICK
@given(TREES)
def test_the_disease_is_known_for_a_reason_or_asked(tree: list[tuple[str, ...]]) -> None:
    plan = plan_of(tree)
    if plan is None:
        return
    if plan.disease_class is None:
        assert plan.questions
        return
    assert plan.disease_reason
    assert plan.class_names[-1] == plan.disease_class
    assert not any(map(is_number, plan.class_names))
    assert not any(folder_words.is_exact_split(name) for name in plan.class_names)


@QUICK
@given(TREES)
def test_names_alone_decide_so_order_and_repetition_do_not(tree: list[tuple[str, ...]]) -> None:
    one, two = plan_of(tree), plan_of(tree[::-1])
    assert (one is None) == (two is None)
    if one is not None and two is not None:
        assert [(f.key, f.class_name, f.split, f.group) for f in one.found] == [
            (f.key, f.class_name, f.split, f.group) for f in two.found
        ]
        assert one.decisions == two.decisions


@QUICK
@given(TREES)
def test_what_a_person_says_of_a_folder_holds(tree: list[tuple[str, ...]]) -> None:
    roles: tuple[tuple[str, Role], ...] = (("flu", "skip"), ("images", "kind"))
    there = {part for parts in tree for part in parts[:-1]}
    plan = plan_of(tree, DataOptions(folders=tuple(r for r in roles if r[0] in there)))
    if plan is not None and "flu" in there:
        assert not any("flu" in one.key.split("/")[:-1] for one in plan.found)
