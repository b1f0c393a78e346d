"""From image to evidence: the ledger adds up, relatives do not vote, novel images get no answer."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from core.answers.diagnose import diagnose, reject
from core.answers.diagnosis import RESEARCH_USE, Diagnosis
from core.assessment.predict_split import evaluate
from core.data.datasets import Dataset, read_dataset
from core.errors import DataError, ImageError
from core.export.tables import defuse
from core.export.worklist import to_csv, to_json
from core.images.decode import Image, decode, encode_png, load
from core.images.notices import Notice
from core.images.phantom import draw
from core.models.bundle import ModelBundle
from core.models.ensemble import Ensemble


def eye(seed: int, *, is_diseased: bool = True) -> Image:
    return decode(
        encode_png(draw(seed, is_diseased=is_diseased, size=96).pixels), name=f"{seed}.png"
    )


@pytest.fixture(scope="module")
def diagnosed(tiny_bundle: ModelBundle) -> Diagnosis:
    return diagnose(tiny_bundle, [eye(900001)])[0]


def test_the_ledger_adds_up(tiny_bundle: ModelBundle, diagnosed: Diagnosis) -> None:
    shares = [n.share for n in diagnosed.neighbours]
    assert sum(shares) == pytest.approx(1.0)
    assert len(shares) == diagnosed.k == tiny_bundle.metrics["k"]
    by_class = dict.fromkeys(tiny_bundle.class_names, 0.0)
    for n in diagnosed.neighbours:
        by_class[n.class_name] += n.share
        assert n.weight == pytest.approx(1 / n.distance)
        assert tiny_bundle.gallery.keys[n.index] == n.key
    assert diagnosed.vote_shares == pytest.approx(by_class)
    distances = [n.distance for n in diagnosed.neighbours]
    assert distances == sorted(distances)
    assert [n.rank for n in diagnosed.neighbours] == list(range(1, diagnosed.k + 1))


def test_the_answer_follows_the_vote(diagnosed: Diagnosis) -> None:
    assert sum(diagnosed.probabilities.values()) == pytest.approx(1.0)
    leading = max(diagnosed.vote_shares, key=lambda name: diagnosed.vote_shares[name])
    assert diagnosed.predicted_class == leading
    assert diagnosed.nearest_other is not None
    assert diagnosed.nearest_other.class_name != leading


def test_an_ensemble_has_one_scale_of_distances_and_one_order(tiny_ensemble: Ensemble) -> None:
    """Against a plain count: no shown image is ranked by one member's space only."""
    images = [eye(900001), eye(900002, is_diseased=False), eye(900003)]
    members = tiny_ensemble.members
    for image, done in zip(images, diagnose(tiny_ensemble, images, explain=False), strict=True):
        assert done.nearest_other is not None
        queries = [m.bundle.embedder.embed_batch([image.pixels]).embeddings[0] for m in members]
        mean = np.average(
            [
                np.linalg.norm(m.bundle.gallery.embeddings[np.argsort(m.album_rows)] - q, axis=1)
                for m, q in zip(members, queries, strict=True)
            ],
            axis=0,
            weights=[m.weight for m in members],
        )
        order = np.argsort(mean)
        for n in {*done.neighbours, done.nearest_other}:
            assert n.distance == pytest.approx(mean[n.index], abs=1e-4)
            assert order[n.rank - 1] == n.index
        is_other = tiny_ensemble.gallery.labels != tiny_ensemble.class_names.index(
            done.predicted_class or ""
        )
        assert done.nearest_other.distance == pytest.approx(mean[is_other].min(), abs=1e-4)
        shown = [n.distance for n in (*done.neighbours, done.nearest_other)]
        assert done.nearest_distance == min(shown)


def test_everything_a_page_shows_is_there(tiny_bundle: ModelBundle, diagnosed: Diagnosis) -> None:
    assert diagnosed.pixels is not None
    assert set(diagnosed.heatmaps) == set(tiny_bundle.config.run.embedder.backbones)
    assert {m.class_name for m in diagnosed.maps} == set(tiny_bundle.class_names)
    for heatmap in diagnosed.maps:
        assert heatmap.values.dtype == np.float32
        assert heatmap.values.shape == heatmap.views.shape[1:]
        assert len(heatmap.views) == len(diagnosed.view_probabilities) == 4
        assert 0.0 <= heatmap.values.min() <= heatmap.values.max() <= 1.0
    assert sum(m.values.nbytes + m.views.nbytes for m in diagnosed.maps) < 20_000  # not megabytes
    low, high = tiny_bundle.projection.gallery_xy.min(0), tiny_bundle.projection.gallery_xy.max(0)
    assert diagnosed.map_xy is not None
    assert np.all((low <= diagnosed.map_xy) & (diagnosed.map_xy <= high))
    assert diagnosed.members[0].probabilities == diagnosed.probabilities
    assert diagnosed.sha256 == eye(900001).sha256


def test_company_changes_nothing(tiny_bundle: ModelBundle, diagnosed: Diagnosis) -> None:
    told: list[float] = []
    images = [eye(900005), eye(900001), eye(900006)]
    many = diagnose(tiny_bundle, images, explain=False, progress=lambda d, _: told.append(d))
    assert [d.file for d in many] == ["900005.png", "900001.png", "900006.png"]
    assert many[1].probabilities == pytest.approx(diagnosed.probabilities, abs=1e-6)
    assert many[1].map_xy == pytest.approx(diagnosed.map_xy, abs=1e-4)
    assert many[1].heatmaps == {}
    assert told[-1] == 1.0


def test_a_training_image_does_not_vote_on_itself(tiny_bundle: ModelBundle) -> None:
    key = tiny_bundle.gallery.keys[4]
    image = load(Path(tiny_bundle.config.data_root) / key)
    done = diagnose(tiny_bundle, [image], explain=False)[0]
    assert [(n.key, n.reason) for n in done.left_out] == [(key, "duplicate")]
    assert key not in {n.key for n in done.neighbours}


def test_uncertain_and_strange_images_get_no_answer(tiny_bundle: ModelBundle) -> None:
    knn = dataclasses.replace(tiny_bundle.config.run.knn, abstain_margin=0.4999)
    run = dataclasses.replace(tiny_bundle.config.run, knn=knn)
    unsure = dataclasses.replace(
        tiny_bundle, config=dataclasses.replace(tiny_bundle.config, run=run), novelty_limit=9.0
    )
    done = diagnose(unsure, [eye(900001)], explain=False)[0]
    assert (done.status, done.abstain_reason) == ("abstained", "uncertain")
    strict = dataclasses.replace(tiny_bundle, novelty_limit=0.0)
    done = diagnose(strict, [eye(900001)], explain=False)[0]
    assert (done.status, done.abstain_reason) == ("abstained", "novel")


def test_a_photograph_is_farther_than_any_eye(tiny_bundle: ModelBundle) -> None:
    china = np.ascontiguousarray(load_sample_images().images[0])
    photo = decode(encode_png(china), name="china.png")
    done = diagnose(tiny_bundle, [photo], explain=False)[0]
    assert done.novelty is not None
    assert done.novelty.is_novel
    assert done.status == "abstained"


def test_a_bad_file_is_a_record_with_its_reason(tiny_bundle: ModelBundle) -> None:
    with pytest.raises(ImageError) as caught:
        decode(b"hello")
    rejected = reject("note.png", caught.value, model=tiny_bundle)
    assert rejected.status == "rejected"
    assert rejected.error_code == "image.not_an_image"
    raw = to_json(rejected)
    assert raw["predicted_class"] is None
    assert "text" in str(raw["error"])


def test_the_json_is_the_agreed_one(diagnosed: Diagnosis) -> None:
    raw = json.loads(json.dumps(to_json(diagnosed, heatmap_files={"a": "b.png"})))
    agreed = {
        "file", "status", "predicted_class", "probabilities", "neighbours", "members", "novelty",
        "heatmaps", "model_id", "error",
    }  # fmt: skip
    assert agreed <= set(raw)
    assert set(raw["neighbours"][0]) == {"rank", "file", "label", "distance", "weight", "share"}
    assert set(raw["members"][0]) == {"model_id", "probabilities", "weight"}
    assert set(raw["novelty"]) == {"distance_percentile", "is_novel"}
    assert raw["notice"] == RESEARCH_USE


def test_the_table_defuses_formulas(diagnosed: Diagnosis) -> None:
    evil = dataclasses.replace(diagnosed, file="=HYPERLINK(1)")
    lines = to_csv([evil, diagnosed]).splitlines()
    assert lines[0].startswith("file,status,predicted_class,p_disease,p_normal")
    assert lines[1].startswith("'=HYPERLINK")
    assert len(lines) == 3
    assert len(diagnosed.model_identity) == 64
    assert lines[2].endswith(f",{diagnosed.model_identity}")
    for formula in ("=1", "+1+1", "-x", "@a", "\t=1", " =1", "\n=1", "＝1", "＋a"):
        assert defuse(formula) == f"'{formula}"
    for number in ("-1.5", "+2", "-1e-3", "x=1", ""):
        assert defuse(number) == number


def test_no_file_gives_an_answer_where_the_screen_gives_none(diagnosed: Diagnosis) -> None:
    answered = dataclasses.replace(diagnosed, status="answered", abstain_reason=None)
    unsure = dataclasses.replace(diagnosed, status="abstained", abstain_reason="uncertain")
    novel = dataclasses.replace(diagnosed, status="abstained", abstain_reason="novel")
    cases = [answered, unsure, novel]
    told = [(r["predicted_class"], r["p_disease"] != "", r["abstain_reason"]) for r in table(cases)]
    assert told == [
        (diagnosed.predicted_class, True, ""),
        ("", True, "uncertain"),  # the screen shows the probability but no answer
        ("", False, "novel"),
    ]
    assert [to_json(d)["answer"] for d in cases] == [diagnosed.predicted_class, None, None]
    assert to_json(novel)["probabilities"]  # the agreed format includes them


def test_the_table_says_how_a_file_was_shown(
    tiny_bundle: ModelBundle, diagnosed: Diagnosis
) -> None:
    image = dataclasses.replace(
        eye(900001), frame=1, n_frames=3, window=(40.0, 400.0), is_inverted=True
    )
    (stack,) = diagnose(tiny_bundle, [image], explain=False)
    rejected = reject("a", ImageError("no"), model=tiny_bundle)
    columns = ("frame_number", "n_frames", "window_centre", "window_width", "is_inverted")
    shown = [tuple(row[c] for c in columns) for row in table([stack, diagnosed, rejected])]
    assert shown == [
        ("2", "3", "40.0", "400.0", "True"),
        ("1", "1", "", "", "False"),
        ("", "", "", "", ""),
    ]


def table(diagnoses: list[Diagnosis]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(diagnoses))))


@pytest.fixture(scope="module")
def evaluated(tiny_bundle: ModelBundle) -> dict[str, object]:
    dataset = read_dataset(Path(tiny_bundle.config.data_root), val_fraction=0.25)
    return evaluate(tiny_bundle, dataset, split="test")


def test_evaluate_gives_the_agreed_json(evaluated: dict[str, object]) -> None:
    agreed = {
        "model_id", "data", "split", "n", "accuracy", "accuracy_ci95", "balanced_accuracy",
        "auroc", "auroc_ci95", "average_precision", "sensitivity", "specificity", "brier", "ece",
        "confusion", "k", "tta", "members", "agreement", "coverage_at_abstention",
    }  # fmt: skip
    assert agreed <= set(evaluated)
    assert evaluated["n"] == 16
    json.dumps(evaluated)


def test_evaluate_equals_diagnosing_each_image(
    tiny_bundle: ModelBundle, evaluated: dict[str, object]
) -> None:
    root = Path(tiny_bundle.config.data_root)
    records = read_dataset(root, val_fraction=0.25).subset("test")
    images = [load(record.path) for record in records if record.path]
    answers = diagnose(tiny_bundle, images, explain=False)
    right = [
        tiny_bundle.class_names[r.label] == d.predicted_class
        for r, d in zip(records, answers, strict=True)
    ]
    assert evaluated["accuracy"] == pytest.approx(np.mean(right))


def test_evaluate_refuses_other_classes_and_absent_splits(
    tiny_bundle: ModelBundle, phantom_dataset: Dataset
) -> None:
    other = dataclasses.replace(phantom_dataset, class_names=("healthy", "sick"))
    with pytest.raises(DataError, match="knows the classes normal, disease; the data has healthy"):
        evaluate(tiny_bundle, other, split="test")
    with pytest.raises(DataError, match="has no holdout split; it has test, train, val"):
        evaluate(tiny_bundle, phantom_dataset, split="holdout")


def test_a_split_without_a_readable_image_is_refused(
    tiny_bundle: ModelBundle, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    broken = tmp_path / "a.png"
    broken.write_bytes(b"no picture")
    records = tuple(
        dataclasses.replace(record, path=broken) if record.split == "test" else record
        for record in phantom_dataset.records
    )
    data = dataclasses.replace(phantom_dataset, records=records)
    with pytest.raises(
        DataError, match="none of the 16 images of the test split can be read; the"
    ) as err:
        evaluate(tiny_bundle, data, split="test")
    assert err.value.code == "data.unreadable"


def test_the_generators_mark_is_no_burned_in_text_but_a_name_beside_it_is(
    tiny_ensemble: Ensemble,
) -> None:
    drawn = draw(900_001, is_diseased=True, size=384).pixels
    named = drawn.copy()
    cv2.putText(named, "DOE 4711", (150, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255,) * 3, 2)
    images = [decode(encode_png(p), name="a.png") for p in (drawn, named, named[:-10])]
    marked, both, unmarked = diagnose(tiny_ensemble, images, explain=False)
    assert (marked.has_synthetic_mark, marked.burned_in) == (True, ())
    assert both.has_synthetic_mark
    assert both.burned_in
    assert not unmarked.has_synthetic_mark
    assert unmarked.burned_in


def test_notices_and_overlays_come_with_the_answer_and_are_never_read(
    tiny_bundle: ModelBundle, diagnosed: Diagnosis
) -> None:
    image = eye(950_003)
    mask = np.zeros((2000, 1000), dtype=bool)
    mask[1000:] = True
    said = (Notice("image.overlays", "Overlay graphics.", {"n": 1}), Notice("x", "=Two."))
    large = dataclasses.replace(image, pixels=np.resize(image.pixels, (2000, 1000, 3)))
    marked = dataclasses.replace(large, notices=said, overlay=mask)
    plain, done = (diagnose(tiny_bundle, [i], explain=False)[0] for i in (large, marked))
    assert done.probabilities == plain.probabilities
    assert done.notices == said
    assert done.overlay is not None
    assert done.overlay.shape == done.pixels.shape[:2] == (1024, 512)
    assert done.overlay[512:].all()
    assert not done.overlay[:511].any()
    assert to_json(done)["notices"] == [
        {"code": "image.overlays", "text": "Overlay graphics."},
        {"code": "x", "text": "=Two."},
    ]
    assert to_json(diagnosed)["notices"] == []
    assert list(to_json(done))[-1] == "notices"
    (row,) = table([done])
    assert list(row)[-2:] == ["notices", "model_identity"]
    assert row["notices"] == "Overlay graphics. =Two."
    assert table([diagnosed])[0]["notices"] == ""
