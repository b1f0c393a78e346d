"""The database of corrections: versions, undo, roll-back, races, and a killed process."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from core.config import Settings
from core.errors import ConfigError, CurationError, DataError
from core.gallery.corrections import Change, GalleryState
from core.gallery.corrections_db import CurationStore, default_url, open_store
from core.gallery.search import Gallery
from core.gallery.selection import Filter

ROOT = Path(__file__).resolve().parents[1]
GIVEN = {"a": "normal", "b": "disease", "c": "normal"}
TO_DISEASE = Change("a", "label", "disease")
ASIDE = Change("b", "excluded", "yes")


@pytest.fixture
def store(tmp_path: Path) -> CurationStore:
    return CurationStore(default_url(tmp_path))


def apply(store: CurationStore, *changes: Change, version: int | None = None) -> int:
    expected = store.read_version("s") if version is None else version
    return store.apply("s", changes, given_labels=GIVEN, expected_version=expected, author="Dr. A")


def test_reading_makes_no_file(store: CurationStore, tmp_path: Path) -> None:
    assert store.read_state("s") == GalleryState()
    assert store.read_history("s") == []
    assert store.read_filters("s") == {}
    assert list(tmp_path.iterdir()) == []


def test_a_change_is_a_version_with_its_trail(store: CurationStore) -> None:
    assert apply(store, TO_DISEASE, ASIDE, Change("c", "note", "blurred")) == 1
    state = store.read_state("s")
    assert state.version == 1
    assert dict(state.labels) == {"a": "disease"}
    assert state.excluded == {"b"}
    assert dict(state.notes) == {"c": "blurred"}
    (entry,) = store.read_history("s")
    assert (entry.author, entry.action, entry.parent) == ("Dr. A", "change", 0)
    assert [(e.key, e.field, e.old, e.new) for e in entry.edits] == [
        ("a", "label", "normal", "disease"),
        ("b", "excluded", "", "yes"),
        ("c", "note", "", "blurred"),
    ]
    assert store.read_state("another data set") == GalleryState()


def test_undo_goes_back_step_by_step_and_is_itself_recorded(store: CurationStore) -> None:
    apply(store, TO_DISEASE)
    apply(store, ASIDE)
    apply(store, Change("a", "label", "normal"))
    assert dict(store.read_state("s").labels) == {}
    store.undo("s", expected_version=3)
    assert dict(store.read_state("s").labels) == {"a": "disease"}
    store.undo("s", expected_version=4)
    assert store.read_state("s").excluded == frozenset()
    apply(store, Change("c", "excluded", "yes"))  # a new branch from the undone state
    store.undo("s", expected_version=6)
    store.undo("s", expected_version=7)
    assert store.read_state("s") == GalleryState(version=8)
    with pytest.raises(CurationError, match="no change left"):
        store.undo("s", expected_version=8)
    assert [entry.action for entry in store.read_history("s")] == [
        *("change", "change", "change", "undo", "undo", "change", "undo", "undo")
    ]


def test_roll_back_restores_any_version(store: CurationStore) -> None:
    apply(store, TO_DISEASE, Change("a", "note", "x"))
    apply(store, ASIDE, Change("a", "note", ""))
    then = store.read_state("s", version=1)
    store.roll_back("s", 1, expected_version=2)
    now = store.read_state("s")
    assert (now.labels, now.excluded, now.notes) == (then.labels, then.excluded, then.notes)
    store.roll_back("s", 2, expected_version=3)
    assert store.read_state("s").excluded == {"b"}
    store.undo("s", expected_version=4)  # of the roll-back: as it was before it
    assert dict(store.read_state("s").notes) == {"a": "x"}
    store.undo("s", expected_version=5)  # of the roll-back before that one
    assert store.read_state("s").excluded == {"b"}
    with pytest.raises(CurationError, match="no version 9; there are 0 to 6"):
        store.roll_back("s", 9, expected_version=6)
    with pytest.raises(CurationError, match="current version already"):
        store.roll_back("s", 2, expected_version=6)
    with pytest.raises(CurationError, match="no version 7"):
        store.read_state("s", version=7)


def test_nothing_changes_twice_and_long_notes_are_refused(store: CurationStore) -> None:
    apply(store, TO_DISEASE)
    with pytest.raises(CurationError, match="nothing would change"):
        apply(store, TO_DISEASE, Change("b", "excluded", ""))
    with pytest.raises(CurationError, match="2001 characters"):
        apply(store, Change("a", "note", "x" * 2001))
    assert store.read_version("s") == 1


def test_a_rival_is_not_overwritten(store: CurationStore) -> None:
    other = CurationStore(store.url.render_as_string(hide_password=False))
    apply(store, TO_DISEASE)
    with pytest.raises(CurationError, match="at version 1, not 0 any more") as caught:
        apply(other, ASIDE, version=0)
    assert caught.value.code == "curation.moved_on"
    history = other.read_history("s")
    apply(store, ASIDE)
    with pytest.raises(CurationError, match="somebody else"):  # between its read and its write
        other._add("s", history, [], 1, action="change", author="")
    assert store.read_version("s") == 2


def test_filters_are_kept_replaced_and_forgotten(store: CurationStore) -> None:
    store.save_filter("s", " mine ", Filter(name_part="x"))
    store.save_filter("s", "mine", Filter(name_part="y"))
    assert store.read_filters("s") == {"mine": Filter(name_part="y")}
    store.delete_filter("s", "mine")
    assert store.read_filters("s") == {}
    with pytest.raises(CurationError, match="needs a name"):
        store.save_filter("s", "  ", Filter())


def make_gallery() -> Gallery:
    rows = np.eye(3, dtype=np.float32)
    labels = np.array([0, 1, 0])
    return Gallery(rows, labels, ("a", "b", "c"), ("train",) * 3, ("",) * 3, ("1", "2", "3"))


def test_the_gallery_votes_as_curated_and_the_given_one_stays() -> None:
    gallery = make_gallery()
    state = GalleryState(1, {"c": "disease", "gone": "normal"}, frozenset({"b"}))
    curated = state.apply(gallery, ("normal", "disease"))
    assert curated.labels.tolist() == [0, 1, 1]
    assert gallery.labels.tolist() == [0, 1, 0]
    _, found = curated.search(gallery.embeddings[1:2], 3)
    assert sorted(found[0].tolist()) == [0, 2]
    assert curated.silent.tolist() == [1]
    assert GalleryState().apply(gallery, ("normal", "disease")) is gallery


def test_a_class_is_never_left_without_a_voter() -> None:
    with pytest.raises(DataError, match="'disease' would be left"):
        GalleryState(1, {}, frozenset({"b"})).apply(make_gallery(), ("normal", "disease"))
    with pytest.raises(DataError, match="none of the classes"):
        GalleryState(1, {"a": "cyst"}).apply(make_gallery(), ("normal", "disease"))


def test_bad_addresses_say_what_is_expected(tmp_path: Path) -> None:
    for url in ("nonsense", "nosuch://x"):
        with pytest.raises((ConfigError, CurationError), match="NEIGHBORDX_DATABASE"):
            CurationStore(url)
    nowhere = CurationStore(f"sqlite:///{tmp_path}/missing/folder/x.sqlite")
    with pytest.raises(CurationError, match="cannot be used"):
        apply(nowhere, TO_DISEASE)
    settings = Settings(database_url="sqlite:///x.db")
    assert open_store(settings).url.database == "x.db"


KILLED = """
    import sys, time
    import sqlalchemy as sa
    from core.gallery.corrections import Change
    from core.gallery.corrections_db import CurationStore

    url, stage, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
    store = CurationStore(url)
    if stage == "edits":  # the version is written, its edits are not
        @sa.event.listens_for(store._engine, "before_cursor_execute")
        def stop(conn, cursor, statement, parameters, context, executemany):
            if "INSERT INTO gallery_edit" in statement:
                print("now", flush=True); time.sleep(60)
    elif stage == "commit":  # everything is written, nothing is committed
        @sa.event.listens_for(store._engine, "commit")
        def stop_before_commit(conn):
            print("now", flush=True); time.sleep(60)
    else:
        print("now", flush=True)
    changes = [Change(f"k{i}", "label", "disease") for i in range(n)]
    given = {f"k{i}": "normal" for i in range(n)}
    store.apply("s", changes, given_labels=given, expected_version=1)
    time.sleep(60)
"""
N_EDITS = 5000


SLOWLY = [pytest.param(stage, marks=pytest.mark.slow) for stage in ("edits", "0.0", "0.15", "0.4")]


@pytest.mark.parametrize("stage", ["commit", *SLOWLY])
def test_a_killed_relabel_leaves_all_or_nothing(tmp_path: Path, stage: str) -> None:
    """SIGKILL at fixed points, and at fixed times while writing 5,000 labels."""
    url = default_url(tmp_path)
    CurationStore(url).apply(
        "s", [TO_DISEASE], given_labels=GIVEN, expected_version=0, author="before"
    )
    command = [sys.executable, "-c", textwrap.dedent(KILLED), url, stage, str(N_EDITS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"now\n"
        if stage not in ("edits", "commit"):
            time.sleep(float(stage))
        child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=30) == -signal.SIGKILL
    store = CurationStore(url)
    n_edits = [len(entry.edits) for entry in store.read_history("s")]
    assert n_edits in ([1], [1, N_EDITS])
    if stage in ("edits", "commit"):
        assert n_edits == [1]
    assert len(store.read_state("s").labels) in (1, N_EDITS + 1)
    apply(store, ASIDE)  # and the database is still writable


@pytest.mark.skipif(
    "NEIGHBORDX_TEST_DATABASE" not in os.environ,
    reason="set NEIGHBORDX_TEST_DATABASE to a PostgreSQL URL of an empty database",
)
def test_postgresql_does_the_same(request: pytest.FixtureRequest) -> None:
    store = CurationStore(os.environ["NEIGHBORDX_TEST_DATABASE"])
    request.addfinalizer(store.close)
    start = store.read_version("s")
    apply(store, TO_DISEASE)
    apply(store, ASIDE, Change("a", "note", "ünï"))
    store.roll_back("s", start, expected_version=start + 2)
    assert store.read_state("s").excluded == frozenset()
    with pytest.raises(CurationError, match="somebody else"):
        apply(store, ASIDE, version=start)
    store.save_filter("s", "mine", Filter(name_part="y"))
    assert store.read_filters("s")["mine"].name_part == "y"
