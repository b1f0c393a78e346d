"""Heatmaps tested on their image, training images at full size, coverage checked by hand."""

import dataclasses
import gc
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest

from core.answers.diagnose import diagnose
from core.answers.diagnosis import Diagnosis, Heatmap, Novelty
from core.answers.reliability import compute_coverage, describe_reliability
from core.answers.scrutiny import compute_map_agreement, draw_maps, scrutinise
from core.answers.votes import Vote, compute_close_limit
from core.errors import ConfigError, ShapeError
from core.explanations.grad_cam import find_voters
from core.explanations.methods import explain_vote, list_offered
from core.gallery.voting import cast_votes
from core.images.decode import decode, encode_png
from core.images.phantom import draw
from core.models.bundle import ModelBundle
from core.models.ensemble import Ensemble
from core.models.originals import load_case, load_image


@pytest.fixture(scope="module")
def case(tiny_ensemble: Ensemble) -> Diagnosis:
    image = decode(encode_png(draw(900001, is_diseased=True, size=96).pixels), name="a.png")
    return diagnose(tiny_ensemble, [image])[0]


@pytest.mark.parametrize("method", list_offered())
def test_every_heatmap_is_tested_for_either_class(
    tiny_ensemble: Ensemble, case: Diagnosis, method: str
) -> None:
    for class_name in tiny_ensemble.class_names:
        maps = draw_maps(tiny_ensemble, case, class_name=class_name, method=method)
        found = scrutinise(tiny_ensemble, case, maps)
        assert (found.class_name, found.method, found.maps) == (class_name, method, maps)
        assert set(found.by_backbone) == set(case.heatmaps_for(class_name))
        for one in found.by_backbone.values():
            assert 0.0 <= one.test.deletion <= 1.0
            assert one.view_agreement is not None
            assert -1.0 <= one.view_agreement <= 1.0
        assert found.map_agreement is not None


def test_maps_by_integrated_gradients_are_those_of_the_vote(tiny_bundle: ModelBundle) -> None:
    image = decode(encode_png(draw(900001, is_diseased=True, size=96).pixels), name="a.png")
    case = diagnose(tiny_bundle, [image])[0]
    maps = draw_maps(tiny_bundle, case, class_name="disease", method="integrated")
    embedded = tiny_bundle.embedder.embed_batch([image.pixels])
    expected = explain_vote(
        tiny_bundle.embedder,
        [a[:, 0] for a in embedded.activations],
        class_index=tiny_bundle.class_names.index("disease"),
        neighbours=find_voters(tiny_bundle.gallery, embedded.embeddings[0], k=tiny_bundle.n_shown),
        method="integrated",
    )
    assert {m.backbone for m in maps} == set(expected)
    for heatmap in maps:
        np.testing.assert_allclose(heatmap.values, expected[heatmap.backbone], atol=1e-5)
        assert not np.array_equal(heatmap.values, case.heatmaps_for("disease")[heatmap.backbone])
        assert heatmap.views.min() >= 0.0
        assert heatmap.views.shape[0] == 4


def test_a_case_without_heatmaps_cannot_be_tested(tiny_ensemble: Ensemble, case: Diagnosis) -> None:
    bare = dataclasses.replace(case, maps=())
    with pytest.raises(ShapeError, match="'disease'"):
        draw_maps(tiny_ensemble, bare, class_name="disease")
    with pytest.raises(ConfigError, match="'magic'"):
        draw_maps(tiny_ensemble, case, class_name="disease", method="magic")
    with pytest.raises(ShapeError, match="one class and method"):
        scrutinise(tiny_ensemble, case, case.maps)


def test_agreement_by_hand() -> None:
    ramp = np.arange(9, dtype=np.float32).reshape(3, 3) / 8
    views = ramp[None]
    same = [Heatmap(name, "disease", ramp, views) for name in "ab"]
    opposed = [same[0], Heatmap("b", "disease", 1 - ramp, views)]
    assert compute_map_agreement(same) == pytest.approx(1.0)
    assert compute_map_agreement(opposed) == pytest.approx(-1.0)
    assert compute_map_agreement(same[:1]) is None


def test_the_views_mean_nothing_new_when_there_is_one_answer(case: Diagnosis) -> None:
    assert len(case.view_probabilities) == 4
    assert all(0.0 <= p <= 1.0 for p in case.view_probabilities)
    # the whole is within the range of its views, up to the calibration's smoothing
    p = case.probabilities["disease"]
    assert min(case.view_probabilities) - 0.2 <= p <= max(case.view_probabilities) + 0.2


def test_coverage_by_hand() -> None:
    truth = np.array([True, True, False, False, True])
    p = np.array([0.95, 0.9, 0.1, 0.6, 0.45])  # the two least confident are wrong
    assert [compute_coverage(truth, p, share=s).accuracy for s in (1.0, 0.8, 0.6)] == [
        pytest.approx(0.6),
        pytest.approx(0.75),
        1.0,
    ]
    assert compute_coverage(truth, p, share=0.5).n == 3  # rounded up


def with_validation(bundle: ModelBundle, **answers: object) -> ModelBundle:
    metrics = {**bundle.metrics, "validation_answers": answers}
    return dataclasses.replace(
        bundle, contents=dataclasses.replace(bundle.contents, metrics=metrics)
    )


def test_reliability_comes_from_the_validation_answers(tiny_bundle: ModelBundle) -> None:
    truth = [True, False] * 20
    p = [0.9, 0.1] * 19 + [0.45, 0.55]  # two wrong, and within the abstain zone
    known = describe_reliability(
        with_validation(tiny_bundle, keys=list(range(40)), is_disease=truth, p_disease=p)
    )
    assert known is not None
    assert (known.n, known.method) == (40, "temperature")
    assert [c.accuracy for c in known.coverage] == [pytest.approx(0.95), 1.0, 1.0]
    assert known.answered is not None
    assert known.answered.share == pytest.approx(0.95)
    assert known.answered.accuracy == 1.0
    few = with_validation(tiny_bundle, keys=[1], is_disease=[True], p_disease=[0.9])
    assert describe_reliability(few) is None


def test_the_original_is_shown_where_it_still_is(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    original = Path(tiny_bundle.config.data_root) / tiny_bundle.gallery.keys[0]
    np.testing.assert_array_equal(load_case(tiny_bundle, 0), decode(original.read_bytes()).pixels)
    moved = dataclasses.replace(
        tiny_bundle, config=dataclasses.replace(tiny_bundle.config, data_root=str(tmp_path))
    )
    np.testing.assert_array_equal(load_case(moved, 0), tiny_bundle.thumbnail(0))
    other = tmp_path / tiny_bundle.gallery.keys[0]
    other.parent.mkdir(parents=True)
    shutil.copy(Path(tiny_bundle.config.data_root) / tiny_bundle.gallery.keys[1], other)
    np.testing.assert_array_equal(load_case(moved, 0), tiny_bundle.thumbnail(0))  # not the same


@pytest.mark.parametrize("replaced", [True, False])
def test_a_training_image_and_its_patient_never_vote_on_it(
    tiny_bundle: ModelBundle, tmp_path: Path, replaced: bool
) -> None:
    keys, groups = tiny_bundle.gallery.keys, list(tiny_bundle.gallery.groups)
    other = tmp_path / keys[0]
    other.parent.mkdir(parents=True)
    if replaced:
        shutil.copy(Path(tiny_bundle.config.data_root) / keys[1], other)
    groups[0] = groups[2] = "train:same"
    gallery = dataclasses.replace(tiny_bundle.contents.gallery, groups=tuple(groups))
    moved = dataclasses.replace(
        tiny_bundle,
        config=dataclasses.replace(tiny_bundle.config, data_root=str(tmp_path)),
        contents=dataclasses.replace(tiny_bundle.contents, gallery=gallery),
    )
    image, is_original = load_image(moved, 0)
    assert not is_original
    np.testing.assert_array_equal(image.pixels, tiny_bundle.thumbnail(0))
    answer = diagnose(moved, [image], explain=False)[0]
    assert {item.index for item in answer.left_out} == {0, 2}
    assert not {0, 2} & {n.index for n in answer.neighbours}


def test_the_limit_of_closeness_keeps_no_gallery_alive(tiny_bundle: ModelBundle) -> None:
    gallery = dataclasses.replace(tiny_bundle.gallery)
    bundle = dataclasses.replace(
        tiny_bundle, contents=dataclasses.replace(tiny_bundle.contents, gallery=gallery)
    )
    (ballot,) = cast_votes(gallery, gallery.embeddings[:1], 3)
    vote = Vote(bundle.members[0], ballot, gallery.embeddings[0], 0.5, {}, Novelty(10.0, False))
    assert 0.0 < compute_close_limit([vote]) < 2.0
    alive = weakref.ref(gallery)
    del gallery, bundle, ballot, vote
    gc.collect()
    assert alive() is None


def test_a_close_case_is_nearer_than_two_of_a_class_usually_are(case: Diagnosis) -> None:
    assert 0.0 < case.close_limit < 2.0
    far = dataclasses.replace(case, close_limit=case.neighbours[0].distance * 0.99)
    assert not far.has_close_case
    near = dataclasses.replace(case, close_limit=case.neighbours[0].distance)
    assert near.has_close_case
    assert not dataclasses.replace(case, neighbours=()).has_close_case
