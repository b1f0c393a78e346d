"""Planted faults are found, and clean data causes no findings."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from core.data.audit import audit, find_repeats, restate
from core.data.datasets import read_dataset, split_plan
from core.data.plan import make_plan
from core.data.readiness import judge
from core.images import phantom
from core.images.phantom import write_dataset


@pytest.fixture
def eyes(tmp_path: Path) -> Path:
    """Phantoms in split folders, so that the tests can plant files."""
    write_dataset(tmp_path / "eyes", n_train=24, n_test=8, size=96)
    (tmp_path / "eyes" / "manifest.csv").unlink()
    return tmp_path / "eyes"


def test_clean_data_have_only_their_size_against_them(eyes: Path) -> None:
    report = audit(read_dataset(eyes))
    assert report.n_images == 32
    assert report.width_range == (96, 96, 96)
    assert report.formats == {"PNG": 32}
    assert not report.exact_duplicates
    assert not report.near_duplicates
    assert {finding.code for finding in judge(report)} == {"few"}


def test_planted_faults_are_found(eyes: Path) -> None:
    source = eyes / "train" / "normal" / "eye00000.png"
    shutil.copy(source, eyes / "test" / "normal" / "leak.png")
    with PILImage.open(eyes / "train" / "normal" / "eye00002.png") as picture:
        picture.resize((90, 90)).save(eyes / "train" / "disease" / "relabelled.jpg", quality=90)
    (eyes / "train" / "disease" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    report = audit(read_dataset(eyes))
    assert [d.keys for d in report.exact_duplicates] == [
        ("test/normal/leak.png", "train/normal/eye00000.png")
    ]
    assert report.exact_duplicates[0].across_splits
    near = [d for d in report.near_duplicates if d.across_labels]
    assert near[0].keys == ("train/disease/relabelled.jpg", "train/normal/eye00002.png")
    assert [key for key, _ in report.unreadable] == ["train/disease/broken.png"]
    n_all, n_readable = (
        sum(split["disease"] for split in counts.values())
        for counts in (report.counts, report.readable)
    )
    assert n_readable == n_all - 1
    told = " ".join(finding.message for finding in judge(report))
    for words in ("different labels", "more than one split", "cannot be read"):
        assert words in told


def test_a_patient_folder_in_both_classes_and_two_splits_is_told(eyes: Path) -> None:
    for split, name in (("train", "normal"), ("test", "disease")):
        source = eyes / split / name
        (source / "P7").mkdir()
        first = next(source.glob("*.png"))
        first.rename(source / "P7" / first.name)
    report = audit(read_dataset(eyes))
    assert report.groups_across_splits == ("P7",)
    assert "patients" in {finding.code for finding in judge(report)}


def test_another_split_is_stated_without_reading_again(eyes: Path) -> None:
    source = eyes / "train" / "normal" / "eye00000.png"
    shutil.copy(source, eyes / "train" / "normal" / "twin.png")
    splits = split_plan(make_plan(eyes), seeds=range(6), val_fraction=0.25)
    report = audit(splits[0])
    for dataset in splits.values():
        assert restate(report, dataset) == audit(dataset)
    pair = {"train/normal/eye00000.png", "train/normal/twin.png"}
    apart = [len({r.split for r in s.records if r.key in pair}) == 2 for s in splits.values()]
    stated = [restate(report, s).exact_duplicates[0].across_splits for s in splits.values()]
    assert stated == apart
    assert len(set(apart)) == 2  # whether it is a leak depends on the seed


def test_the_report_is_plain_json(eyes: Path) -> None:
    told: list[float] = []
    report = audit(read_dataset(eyes), progress=lambda done, _: told.append(done))
    assert report.to_json()["n_images"] == 32
    assert told[-1] == 1.0
    assert np.all(np.diff(told) > 0)


@pytest.mark.slow
def test_known_repeats_of_a_real_set_are_found(shared_data: Path) -> None:
    report = audit(read_dataset(shared_data / "busi"))
    assert len(report.near_duplicates) > 50
    assert any(d.across_splits for d in report.near_duplicates)


def test_repeats_among_pictures_are_groups_of_rows(rng: np.random.Generator) -> None:
    """Four of eight drawn eyes are repeated, brighter and noisier."""
    eyes = [phantom.draw(70_000 + i, is_diseased=i % 2 == 0, size=96).pixels for i in range(8)]
    noisy = [eye * 1.1 + rng.normal(scale=2, size=eye.shape) for eye in eyes[:4]]
    again = [np.clip(picture, 0, 255).astype(np.uint8) for picture in noisy]
    found = find_repeats([*eyes, *again])
    assert [rows.tolist() for rows in found] == [[i, 8 + i] for i in range(4)]
    assert find_repeats(eyes[:1]) == []
