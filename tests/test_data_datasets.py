"""Every layout, the split by patient, and every error message."""

import errno
import io
import threading
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from core.data import datasets
from core.data.datasets import load_ahead, load_record, read_dataset, split_plan
from core.data.options import DataOptions, TrainingData
from core.data.plan import SPLITS, make_plan
from core.errors import DataError, ImageError
from core.files import untrusted_npz


def write_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    PILImage.fromarray(pixels).save(path, format="PNG")


def write_folders(root: Path, *, n: int = 20, splits: tuple[str, ...] = ("",)) -> Path:
    for split in splits:
        for c, name in enumerate(("normal", "disease")):
            for i in range(n):
                write_image(root / split / name / f"{i:03d}.png", seed=100 * c + i)
    return root


def test_reading_ahead_keeps_order_gives_reasons_and_holds_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folders(tmp_path / "data", n=20)
    (root / "normal" / "003.png").write_bytes(b"no picture")
    records = read_dataset(root).records
    begun: list[str] = []
    is_begun = {record.key: threading.Event() for record in records}

    def watch(record: datasets.Record) -> datasets.Image:
        begun.append(record.key)
        is_begun[record.key].set()
        return load_record(record)

    monkeypatch.setattr(datasets, "load_record", watch)
    for index, (record, outcome) in enumerate(load_ahead(records)):
        assert record is records[index]
        for following in records[index + 1 : index + 3]:  # prefetched while this one is used
            assert is_begun[following.key].wait(timeout=10.0)
        assert len(begun) <= index + 1 + datasets._N_AHEAD
        if record.key == "normal/003.png":
            assert isinstance(outcome, ImageError)
        else:
            assert not isinstance(outcome, ImageError)
            np.testing.assert_array_equal(outcome.pixels, load_record(record).pixels)
    assert sorted(begun) == sorted(record.key for record in records)
    assert list(load_ahead([])) == []


def test_a_flat_folder_gets_a_stratified_validation(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "data", n=40)
    (root / "normal" / ".DS_Store").write_bytes(b"x")
    write_image(root / "masks" / "m.png")
    dataset = read_dataset(root)
    assert dataset.class_names == ("normal", "disease")
    assert dataset.disease_index == 1
    counts = Counter((record.split, record.label) for record in dataset.records)
    assert sum(counts.values()) == 80
    assert counts["val", 0] == counts["val", 1] == pytest.approx(6, abs=1)


def test_split_folders_are_kept_and_val_is_made_out_of_train(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "data", splits=("train", "test"))
    dataset = read_dataset(root)
    assert {r.key for r in dataset.subset("test")} == {
        f"test/{c}/{i:03d}.png" for c in ("normal", "disease") for i in range(20)
    }
    assert all(record.key.startswith("train/") for record in dataset.subset("val"))
    given = read_dataset(write_folders(tmp_path / "all", splits=("train", "val", "test")))
    assert all(record.key.startswith("val/") for record in given.subset("val"))


@pytest.mark.parametrize("name", ["valid", "validation", "Validation", "VAL"])
def test_a_validation_folder_by_any_usual_name_is_the_validation_split(
    tmp_path: Path, name: str
) -> None:
    write_folders(tmp_path, n=6, splits=("Train", name, "test"))
    data = read_dataset(tmp_path)
    assert {r.key.split("/")[0] for r in data.subset("val")} == {name}
    assert {split: len(data.subset(split)) for split in SPLITS} == dict.fromkeys(SPLITS, 12)


def test_valid_may_be_a_class(tmp_path: Path) -> None:
    for name in ("valid", "invalid"):
        for i in range(8):
            write_image(tmp_path / name / f"{i}.png", seed=i)
    names = read_dataset(tmp_path, DataOptions(disease_class="invalid")).class_names
    assert names == ("valid", "invalid")


def test_class_folders_beside_the_splits_are_not_left_out_in_silence(tmp_path: Path) -> None:
    write_folders(tmp_path, n=6, splits=("train", "test"))
    (tmp_path / "notes" / "drafts").mkdir(parents=True)
    write_image(tmp_path / "masks" / "normal" / "000.png")
    assert len(read_dataset(tmp_path, val_fraction=0.3).records) == 24
    write_image(tmp_path / "extra" / "Normal" / "000.png")
    with pytest.raises(DataError, match="'extra' holds class folders but is no split") as caught:
        read_dataset(tmp_path)
    assert caught.value.code == "data.beside"


def test_links_to_folders_are_followed_and_bad_ones_named(tmp_path: Path) -> None:
    root, store = tmp_path / "data", tmp_path / "store"
    write_folders(root, n=6, splits=("train",))
    for i in range(2):
        write_image(store / f"p{i}" / "a.png", seed=500 + i)
    (root / "train" / "normal" / "p0").symlink_to(store / "p0")
    (root / "train" / "normal" / "p1").mkdir()
    (root / "train" / "normal" / "p1" / "later").symlink_to(store / "p1")
    (root / "test").symlink_to(write_folders(tmp_path / "elsewhere", n=2))
    data = read_dataset(root, val_fraction=0.3)
    groups = {r.key: r.group for r in data.records}
    assert groups["train/normal/p0/a.png"] == "train:normal/p0"
    assert groups["train/normal/p1/later/a.png"] == "train:normal/p1"
    assert len(data.subset("test")) == 4
    bad = root / "train" / "disease" / "more"
    for target, why in (("nowhere", "leads nowhere"), ("..", "that it lies in")):
        bad.symlink_to(target)
        with pytest.raises(DataError, match=f"train/disease/more is a link .*{why}") as caught:
            read_dataset(root)
        assert caught.value.code == "data.link"
        bad.unlink()


def test_no_patient_is_in_two_splits_and_the_seed_decides(tmp_path: Path) -> None:
    for name in ("normal", "disease"):
        for i in range(60):
            write_image(tmp_path / name / f"patient{i // 3}" / f"{i}.png", seed=i)
    dataset = read_dataset(tmp_path, seed=1)
    train = {record.group for record in dataset.subset("train")}
    val = {record.group for record in dataset.subset("val")}
    assert train
    assert val
    assert not train & val
    again, other = read_dataset(tmp_path, seed=1), read_dataset(tmp_path, seed=2)
    assert again.records == dataset.records
    assert again.data_id == dataset.data_id
    assert {r.key for r in other.subset("val")} != {r.key for r in dataset.subset("val")}


@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.2, 0.3, 0.4, 0.5])
def test_the_share_that_was_asked_for_is_set_apart(tmp_path: Path, fraction: float) -> None:
    dataset = read_dataset(write_folders(tmp_path, n=60), val_fraction=fraction)
    assert len(dataset.subset("val")) / 120 == pytest.approx(fraction, rel=0.05, abs=2 / 120)


def test_the_id_is_of_the_images_and_not_of_the_seed(tmp_path: Path) -> None:
    splits = split_plan(make_plan(write_folders(tmp_path / "one", n=20)), seeds=[0, 1])
    assert len({dataset.data_id for dataset in splits.values()}) == 1
    one, two = tmp_path / "bmp", tmp_path / "other"  # equal names and sizes, other pixels
    for root, shift in ((one, 0), (two, 1000)):
        for c, name in enumerate(("normal", "disease")):
            for i in range(8):
                path = root / name / f"IM{i:04d}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(shift + 100 * c + i).integers(0, 256, (90, 90))
                PILImage.fromarray(pixels.astype(np.uint8)).save(path)
    assert read_dataset(one).data_id != read_dataset(two).data_id


def test_a_patient_with_and_without_a_given_split_stays_whole(tmp_path: Path) -> None:
    write_folders(tmp_path, n=20)
    lines = ["file,split,label,group"]
    for name in ("normal", "disease"):
        for i in range(20):
            split = "train" if i % 2 else ""
            lines.append(f"{name}/{i:03d}.png,{split},{name},{name}{i // 2}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    dataset = read_dataset(tmp_path, val_fraction=0.3)
    patients = [{r.group for r in dataset.subset(split)} for split in ("train", "val")]
    assert all(patients)
    assert not patients[0] & patients[1]


def test_a_manifest_wins_and_its_extra_columns_are_ignored(tmp_path: Path) -> None:
    write_folders(tmp_path, n=12)
    write_image(tmp_path / "lesions" / "0.png")
    lines = ["file,split,label,group,mask,age"]
    for name, label in (("normal", "healthy"), ("disease", "pneumonia")):
        for i in range(12):
            mask = "lesions/0.png" if i == 0 else ""
            split = "test" if i < 3 else "train"
            lines.append(f"{name}/{i:03d}.png,{split},{label},p{i},{mask},44")
    (tmp_path / "manifest.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    dataset = read_dataset(tmp_path)
    assert dataset.class_names == ("healthy", "pneumonia")
    assert len(dataset.subset("test")) == 6
    first = dataset.subset("test")[0]
    assert first.mask == tmp_path / "lesions" / "0.png"
    # group numbers may restart in each given split, so they are kept apart
    assert first.group == "test:p0"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,split\na,b", "has no column label"),
        (
            "file,split,label\n../x.png,train,normal",
            "in line 2, column 'file': points out of its folder",
        ),
        ("file,split,label\n/etc/x.png,train,normal", "points out of its folder"),
        ("file,split,label\nx.png,third,normal", "in line 2, column 'split': is 'third'"),
        ("file,split,label\nx.png,train,", "in line 2, column 'label': is empty"),
        ("file,split,label\nx.png,train,normal", "names 1 files that are not there, first x.png"),
    ],
)
def test_bad_manifests_say_what_is_wrong(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=reason) as caught:
        read_dataset(tmp_path)
    assert caught.value.code == "data.manifest"


def test_a_medmnist_file_asks_which_number_is_the_disease(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    arrays = {}
    for split, n in (("train", 12), ("val", 6), ("test", 8)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 2).reshape(-1, 1)
    np.savez(tmp_path / "toy.npz", **arrays)
    (tmp_path / "features.npz").write_bytes(b"not one of these")
    np.savez(tmp_path / "other.npz", embeddings=np.zeros((3, 4)))
    for root in (tmp_path / "toy.npz", tmp_path):
        with pytest.raises(DataError, match="Which class is the disease"):
            read_dataset(root)
        dataset = read_dataset(root, DataOptions(disease_class="0"))
        assert dataset.class_names == ("1", "0")
        assert [len(dataset.subset(s)) for s in ("train", "val", "test")] == [12, 6, 8]
    record = dataset.subset("test")[3]
    image = load_record(record)
    np.testing.assert_array_equal(image.pixels[:, :, 0], arrays["test_images"][3])
    assert image.name == record.key
    np.savez(tmp_path / "toy.npz", train_images=np.zeros((2, 3)), train_labels=np.zeros(2))
    with pytest.raises(DataError, match="expected a MedMNIST 2-D file"):
        read_dataset(tmp_path / "toy.npz")


def test_which_class_is_disease_is_asked_for_when_names_do_not_say(tmp_path: Path) -> None:
    for name in ("left", "right"):
        for i in range(20):
            write_image(tmp_path / name / f"{i}.png", seed=i)
    with pytest.raises(
        DataError, match=r"Which class is the disease.*left.*right.*--disease-class"
    ):
        read_dataset(tmp_path)
    assert read_dataset(tmp_path, DataOptions(disease_class="left")).class_names == (
        "right",
        "left",
    )
    with pytest.raises(DataError, match="'up' is not one of the classes: left, right"):
        read_dataset(tmp_path, DataOptions(disease_class="up"))


def test_data_read_for_a_model_take_its_disease_where_they_have_it(tmp_path: Path) -> None:
    for name in ("covid", "pneumonia"):
        for i in range(20):
            write_image(tmp_path / name / f"{i}.png", seed=i)
    with pytest.raises(DataError, match="Which class is the disease"):
        read_dataset(tmp_path)
    trained = read_dataset(tmp_path, DataOptions(disease_class="covid"))
    found = read_dataset(tmp_path, model=TrainingData("covid"))
    assert (found.class_names, found.data_id) == (("pneumonia", "covid"), trained.data_id)
    with pytest.raises(DataError, match="Which class is the disease"):
        read_dataset(tmp_path, model=TrainingData("cancer"))
    chosen = read_dataset(
        tmp_path, DataOptions(disease_class="pneumonia"), model=TrainingData("covid")
    )
    assert chosen.class_names == ("covid", "pneumonia")


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("NORMAL", "PNEUMONIA"), ("NORMAL", "PNEUMONIA")),
        (("no_dr", "dr"), ("no_dr", "dr")),
        (("covid", "healthy"), ("healthy", "covid")),
        (("benign", "disease"), ("benign", "disease")),
    ],
)
def test_well_known_names_are_understood(
    tmp_path: Path, names: tuple[str, str], order: tuple[str, str]
) -> None:
    for name in names:
        for i in range(10):
            write_image(tmp_path / name / f"{i}.png", seed=i)
    assert read_dataset(tmp_path).class_names == order


def test_unusable_data_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data at"):
        read_dataset(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image was found"):
        read_dataset(tmp_path / "empty")
    write_image(tmp_path / "one" / "normal" / "a.png")
    with pytest.raises(DataError, match="Exactly two classes are needed; found 1: “normal”"):
        read_dataset(tmp_path / "one")
    few = write_folders(tmp_path / "few", n=3)
    with pytest.raises(DataError, match="training images; at least 4"):
        read_dataset(few)


def test_a_file_that_may_not_be_read_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folders(tmp_path / "data")
    before = read_dataset(root)
    locked = next(r.path for r in before.records if r.path is not None)
    open_path = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:  # root can read all files
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_path(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    dataset = read_dataset(root)
    assert len(dataset.records) == len(before.records)
    assert dataset.data_id != before.data_id
    assert dataset.data_id == read_dataset(root).data_id
    bad = [record.path for record, image in load_ahead(dataset.records) if is_error(image)]
    assert bad == [locked]


def is_error(image: object) -> bool:
    return isinstance(image, ImageError) and "cannot be read" in str(image)


def test_a_name_longer_than_any_file_has_is_a_file_that_is_not_there(tmp_path: Path) -> None:
    lines = ["file,split,label", f"{'x' * 300}.png,train,normal"]
    (tmp_path / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match="names 1 files that are not there, first x"):
        read_dataset(tmp_path)


def test_an_unreadable_image_fails_alone(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "data")
    (root / "normal" / "bad.png").write_bytes(io.BytesIO(b"text").getvalue())
    dataset = read_dataset(root)
    assert len(dataset.records) == 41


def claim(shape: tuple[int, ...]) -> bytes:
    """The header of a byte array, without any values."""
    buffer = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (claim((10**6, 1000, 1000)), "claims 1000000000000 bytes and has 128"),
        (claim((40, 1024, 1024)) + bytes(40 << 20), "unpacks to many hundred times its size"),
        (b"no array", "magic string is not correct"),
    ],
)
def test_an_npz_that_would_fill_the_memory_is_refused(
    images: bytes, words: str, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "toy.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", images)
    with pytest.raises(DataError, match=words) as caught:
        read_dataset(tmp_path / "toy.npz")
    assert caught.value.code == "data.npz"


def test_memory_that_runs_out_at_an_npz_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    np.savez(tmp_path / "toy.npz", train_images=np.zeros((2, 3, 3), np.uint8))
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(DataError, match="cannot be used \\(MemoryError\\)"):
        read_dataset(tmp_path / "toy.npz")
    monkeypatch.setattr(untrusted_npz, "_MAX_BYTES", 17)
    with pytest.raises(DataError, match="its arrays have more than"):
        read_dataset(tmp_path / "toy.npz")
