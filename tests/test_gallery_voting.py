"""The vote by hand, its properties, the search against a slow reference, the choice of K."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from core.errors import DataError, ShapeError
from core.gallery import search as gallery_module
from core.gallery.k_search import search_k
from core.gallery.search import Gallery, split_parts
from core.gallery.voting import Ballot, cast_votes, compute_shares, vote


def build_gallery(embeddings: np.ndarray, labels: list[int], **columns: tuple[str, ...]) -> Gallery:
    n = len(labels)
    return Gallery(
        embeddings=embeddings.astype(np.float32),
        labels=np.array(labels, dtype=np.int64),
        keys=columns.get("keys", tuple(f"image{i}" for i in range(n))),
        splits=("train",) * n,
        groups=columns.get("groups", ("",) * n),
        sha256=columns.get("sha256", tuple(f"hash{i}" for i in range(n))),
    )


def random_unit(rng: np.random.Generator, n: int, width: int = 16) -> np.ndarray:
    points = rng.normal(size=(n, width)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_vote_by_hand() -> None:
    # weights 1/0.5 = 2 for class 0; 1/1 = 1 and 1/2 = 0.5 for class 1: 2 against 1.5
    distances = np.array([[0.5, 1.0, 2.0]], dtype=np.float32)
    labels = np.array([[0, 1, 1]])
    np.testing.assert_allclose(vote(distances, labels, n_classes=2), [[4 / 7, 3 / 7]], rtol=1e-6)
    np.testing.assert_allclose(compute_shares(distances), [[4 / 7, 2 / 7, 1 / 7]], rtol=1e-6)


def test_a_neighbour_at_zero_outvotes_all_and_shares_with_its_equals() -> None:
    distances = np.array([[0.0, 0.0, 1e-9]], dtype=np.float32)
    assert compute_shares(distances).tolist() == [[0.5, 0.5, 0.0]]
    assert vote(distances, np.array([[0, 1, 1]]), n_classes=2).tolist() == [[0.5, 0.5]]


def test_rows_sum_to_one_however_small_the_distances(rng: np.random.Generator) -> None:
    distances = np.sort(rng.random((50, 9)), axis=1).astype(np.float32)
    distances[0] = np.float32(1e-40)
    labels = rng.integers(0, 3, (50, 9))
    probs = vote(distances, labels, n_classes=3)
    np.testing.assert_allclose(probs.sum(1), 1.0, rtol=1e-5)


def test_vote_equals_scikit_learns(rng: np.random.Generator) -> None:
    points, queries = random_unit(rng, 60), random_unit(rng, 20)
    labels = rng.integers(0, 2, 60).tolist()
    gallery = build_gallery(points, labels)
    distances, rows = gallery.search(queries, 7)
    reference = KNeighborsClassifier(7, weights="distance").fit(points, labels)
    probs = vote(distances, gallery.labels[rows], n_classes=2)
    np.testing.assert_allclose(probs, reference.predict_proba(queries), atol=1e-5)


def test_search_of_many_equals_search_of_each(rng: np.random.Generator) -> None:
    """Also in a narrow cone, where expanded distances could not separate the rows."""
    for spread in (1.0, 1e-3):
        points = 1.0 + spread * rng.standard_normal((400, 128))
        points[7] = points[300]
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        gallery = build_gallery(points[:340].astype(np.float32), [0, 1] * 170)
        queries = points[276:].astype(np.float32)
        distances, rows = gallery.search(queries, 5)
        assert np.all(np.diff(distances, axis=1) >= 0)
        for i, query in enumerate(queries):
            apart = np.linalg.norm(gallery.embeddings - query, axis=1)
            nearest = np.lexsort((np.arange(340), apart))[:5]
            np.testing.assert_array_equal(rows[i], nearest)
            np.testing.assert_array_equal(distances[i], apart[nearest])
            np.testing.assert_array_equal(gallery.search(query[None], 5)[1][0], rows[i])


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-5, 0.0])
def test_half_precision_finds_what_float32_finds(
    spread: float, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where half precision cannot separate the rows and the search must be repeated."""
    points = 1.0 + spread * rng.standard_normal((700, 128))
    points[7] = points[300]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    gallery = replace(build_gallery(points[:640], [0, 1] * 320), may_vote=np.arange(640) % 9 != 4)
    queries = points[637:644].astype(np.float32)
    barred = [np.arange(n, dtype=np.int64) for n in range(7)]
    expected = gallery.search(queries, 6, excluded=barred)
    monkeypatch.setattr(gallery_module, "_MANY_ROWS", 1)
    found = gallery.search(queries, 6, excluded=barred)
    np.testing.assert_array_equal(found[0], expected[0])
    if spread:
        np.testing.assert_array_equal(found[1], expected[1])


def test_float32_is_asked_only_where_half_precision_may_have_missed_a_row(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_module, "_MANY_ROWS", 1)
    apart = build_gallery(random_unit(rng, 300, 128), [0] * 300)
    query = apart.embeddings[:1]
    apart.search(query, 3)
    assert "_index" not in vars(apart)
    # 200 rows closer than half precision can resolve: none can be discarded on its result.
    near = query + 1e-6 * rng.standard_normal((200, 128))
    close = build_gallery(np.concatenate([near, apart.embeddings]), [0] * 500)
    distances, rows = close.search(query, 3)
    assert "_index" in vars(close)
    exact = np.linalg.norm(close.embeddings - query, axis=1)
    np.testing.assert_array_equal(rows[0], np.argsort(exact, kind="stable")[:3])
    np.testing.assert_array_equal(distances[0], np.sort(exact)[:3])


def test_a_copy_is_at_distance_zero_even_in_a_large_batch(rng: np.random.Generator) -> None:
    points = random_unit(rng, 100, width=128)
    distances, rows = build_gallery(points, [0] * 100).search(points, 1)
    assert np.all(distances == 0.0)
    np.testing.assert_array_equal(rows[:, 0], np.arange(100))


def test_excluded_rows_never_vote_and_k_shrinks_when_it_must(rng: np.random.Generator) -> None:
    points = random_unit(rng, 10)
    gallery = build_gallery(points, [0, 1] * 5)
    barred = [np.array([0, 1, 2]), np.array([], dtype=np.int64)]
    _, rows = gallery.search(points[:2], 4, excluded=barred)
    assert not set(rows[0]) & {0, 1, 2}
    assert rows[1, 0] == 1
    _, rows = gallery.search(points[:1], 50, excluded=[np.arange(7)])
    assert sorted(rows[0]) == [7, 8, 9]
    with pytest.raises(DataError, match="no gallery image is left"):
        gallery.search(points[:1], 3, excluded=[np.arange(10)])


def test_a_query_votes_alone_as_in_any_batch(rng: np.random.Generator) -> None:
    points, queries = random_unit(rng, 20, 8), random_unit(rng, 5, 8)
    gallery = build_gallery(points, [0, 1] * 10)
    gallery = replace(gallery, n_parts=2, may_vote=np.arange(20) != 4)
    barred = [np.arange(n, dtype=np.int64) for n in (0, 3, 5, 18, 19)]  # row 4 is excluded anyway
    together = cast_votes(gallery, queries, 12, excluded=barred)
    for query, ballot in enumerate(together):
        part = slice(query, query + 1)
        (alone,) = cast_votes(gallery, queries[part], 12, excluded=barred[part])
        np.testing.assert_array_equal(ballot.rows, alone.rows)
        np.testing.assert_allclose(ballot.shares, alone.shares, rtol=1e-6)
        np.testing.assert_allclose(ballot.weights, alone.weights)
        assert ballot.shares.sum() == pytest.approx(1.0)
        assert not set(ballot.rows.tolist()) & {4, *barred[query].tolist()}
    assert [len(ballot.rows) for ballot in together[3:]] == [2, 1]
    distances, rows = replace(gallery, n_parts=1).search(queries, 12, excluded=barred)
    assert (rows[3, 2:] == -1).all()
    assert np.isinf(distances[3, 2:]).all()
    assert (rows[:3] >= 0).all()
    scores = search_k(
        gallery, queries, np.array([0, 1, 0, 1, 0]), candidates=(12,), disease_index=1,
        excluded=barred,
    ).scores  # fmt: skip
    calls = [b.sum_by_class(gallery.labels, n_classes=2).argmax() for b in together]
    assert scores[0].accuracy == np.mean(np.array(calls) == [0, 1, 0, 1, 0])


def test_a_copy_brings_its_whole_patient(rng: np.random.Generator) -> None:
    gallery = build_gallery(
        random_unit(rng, 4), [0, 0, 1, 1], groups=("p1", "p1", "", "p2"), sha256=("a", "b", "c", "")
    )
    assert gallery.find_related(sha256="a") == {0: "duplicate", 1: "group"}
    assert gallery.find_related(sha256="a", group="p2") == {0: "duplicate", 1: "group", 3: "group"}
    assert gallery.find_related(sha256="c") == {2: "duplicate"}
    assert gallery.find_related(sha256="", group="") == {}


def test_relatives_are_found_by_hash_and_by_patient(rng: np.random.Generator) -> None:
    gallery = build_gallery(
        random_unit(rng, 4), [0, 0, 1, 1], groups=("p1", "p1", "", "p2"), sha256=("a", "b", "a", "")
    )
    assert gallery.find_related(sha256="a") == {0: "duplicate", 1: "group", 2: "duplicate"}
    assert gallery.find_related(sha256="b", group="p1") == {0: "group", 1: "duplicate"}
    assert gallery.find_related(sha256="z", group="") == {}


def test_k_is_the_best_on_validation_and_equals_one_search_per_k(rng: np.random.Generator) -> None:
    points, queries = random_unit(rng, 120, 3), random_unit(rng, 60, 3)
    gallery = build_gallery(points, (points[:, 0] > 0).astype(int).tolist())
    labels = ((queries[:, 0] + 0.3 * rng.normal(size=60)) > 0).astype(np.int64)
    found = search_k(gallery, queries, labels, candidates=(3, 11, 500), disease_index=1)
    assert [score.k for score in found.scores] == [3, 11]
    for score in found.scores:
        distances, rows = gallery.search(queries, score.k)
        probs = vote(distances, gallery.labels[rows], n_classes=2)
        assert score.accuracy == np.mean(probs.argmax(1) == labels)
    assert found.k == max(found.scores, key=lambda s: (s.accuracy, s.k)).k


def test_ties_go_to_the_calmer_vote() -> None:
    points = np.array([[1, 0], [0.8, 0.6], [-1, 0], [-0.8, 0.6]])
    gallery = build_gallery(points, [0, 0, 1, 1])
    queries = np.array([[0.99, 0.1], [-0.99, 0.1]], dtype=np.float32)
    found = search_k(gallery, queries, np.array([0, 1]), candidates=(1, 2, 3), disease_index=1)
    assert all(score.accuracy == 1.0 for score in found.scores)
    assert found.k == 3


def place(degrees: list[float]) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("n_right", "n_wrong", "by_one_to_three", "chosen"),
    [
        (7, 2, (0.8, 0.7), 3),  # one standard error is sqrt(0.8 x 0.2 / 10) = 0.126
        (3, 1, (0.8, 0.6), 1),  # sqrt(0.8 x 0.2 / 5) = 0.179
    ],
)
def test_within_one_standard_error_the_calmer_vote_wins_by_hand(
    n_right: int, n_wrong: int, by_one_to_three: tuple[float, float], chosen: int
) -> None:
    gallery = build_gallery(place([0, 10, 20, 90, 100, 110]), [1, 0, 0, 1, 1, 1])
    # The first query is nearest to the lone image of class 1; two of class 0 outvote it.
    queries = place([4.9, *[15.0] * n_right, *[101.0] * n_wrong])
    labels = np.array([1, *[0] * n_right, *[0] * n_wrong])
    best = search_k(gallery, queries, labels, candidates=(1, 3), disease_index=1)
    assert tuple(score.accuracy for score in best.scores) == pytest.approx(by_one_to_three)
    assert best.k == 1
    calm = search_k(
        gallery, queries, labels, candidates=(1, 3), disease_index=1, rule="one-standard-error"
    )
    assert calm.k == chosen


def test_impossible_searches_say_why(rng: np.random.Generator) -> None:
    points = random_unit(rng, 4)
    gallery = build_gallery(points, [0, 1, 0, 1])
    with pytest.raises(DataError, match="the gallery has only 4"):
        search_k(gallery, points, np.array([0, 1, 0, 1]), candidates=(5, 9), disease_index=1)
    with pytest.raises(DataError, match="one class only"):
        search_k(gallery, points, np.zeros(4, dtype=np.int64), candidates=(1,), disease_index=1)
    with pytest.raises(ShapeError, match="k: expected at least 1"):
        gallery.search(points, 0)
    with pytest.raises(ShapeError, match="queries"):
        gallery.search(np.zeros((1, 3), dtype=np.float32), 1)
    with pytest.raises(ShapeError, match="labels: expected values"):
        vote(np.ones((1, 2), dtype=np.float32), np.array([[0, 5]]), n_classes=2)
    with pytest.raises(ShapeError, match="at least one neighbour"):
        compute_shares(np.empty((1, 0), dtype=np.float32))
    with pytest.raises(ShapeError, match="non-negative"):
        compute_shares(np.array([[-1.0]], dtype=np.float32))
    with pytest.raises(DataError, match="gallery is empty"):
        build_gallery(np.empty((0, 4)), [])


def test_the_ballot_of_two_parts_by_hand() -> None:
    """Two adapters, one voter each: every row gets half of the vote, or all of it."""
    up, right = [0.0, 1.0], [1.0, 0.0]
    rows = np.array([up + up, right + right, up + right], dtype=np.float32) / np.sqrt(2)
    gallery = Gallery(
        embeddings=rows.astype(np.float32),
        labels=np.array([0, 1, 1]),
        keys=("a", "b", "c"),
        splits=("train",) * 3,
        groups=("",) * 3,
        sha256=("1", "2", "3"),
        n_parts=2,
    )
    for part in split_parts(gallery.embeddings, 2):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1.0, rtol=1e-6)
    first, second = [0.1, np.sqrt(0.99)], [0.995, np.sqrt(1 - 0.995**2)]
    query = np.array([first + second], dtype=np.float32) / np.float32(np.sqrt(2))
    (ballot,) = cast_votes(gallery, query, 1)
    # the first part finds row 0 (row 2 ties and comes later), the second finds row 1
    assert sorted(ballot.rows.tolist()) == [0, 1]
    assert ballot.shares == pytest.approx([0.5, 0.5])
    assert ballot.sum_by_class(gallery.labels, n_classes=2) == pytest.approx([0.5, 0.5])
    (barred,) = cast_votes(gallery, query, 1, excluded=[np.array([0])])
    assert sorted(barred.rows.tolist()) == [1, 2]


def test_the_sum_of_a_vote_never_exceeds_one() -> None:
    shares = np.array([0.5, 0.5, 2e-8])
    ballot = Ballot(np.arange(3), np.ones(3, np.float32), np.ones(3), shares)
    sums = ballot.sum_by_class(np.array([1, 1, 1]), n_classes=2)
    assert sums.tolist() == [0.0, 1.0]


def test_unanimous_votes_are_equal_whatever_the_distances(rng: np.random.Generator) -> None:
    """Rounding must not rank them, or the AUROC would depend on chance."""
    distances = np.sort(rng.random((200, 37)).astype(np.float32) + 0.01, axis=1)
    labels = np.ones((200, 37), np.int64)
    assert set(vote(distances, labels, n_classes=2)[:, 1].tolist()) == {1.0}
    gallery = build_gallery(random_unit(rng, 40), [1] * 40)
    ballots = cast_votes(gallery, random_unit(rng, 50), 33)
    assert {b.sum_by_class(gallery.labels, n_classes=2)[1] for b in ballots} == {1.0}


def test_one_part_votes_as_the_plain_vote(rng: np.random.Generator) -> None:
    points = rng.normal(size=(30, 4)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    names = tuple(map(str, range(20)))
    labels = rng.integers(0, 2, 20)
    gallery = Gallery(points[:20], labels, names, names, ("",) * 20, names)
    distances, rows = gallery.search(points[20:], 5)
    expected = vote(distances, labels[rows], n_classes=2)
    for query, ballot in enumerate(cast_votes(gallery, points[20:], 5)):
        assert ballot.rows.tolist() == rows[query].tolist()
        assert ballot.weights == pytest.approx(1 / distances[query], rel=1e-5)
        assert ballot.sum_by_class(labels, n_classes=2) == pytest.approx(expected[query], rel=1e-5)
