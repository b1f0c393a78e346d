"""What a data folder is taken for: every layout of CASES, each with the reading that is right."""

import csv
import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from core.data.class_names import decide_disease
from core.data.datasets import read_dataset, split_plan
from core.data.options import DataOptions, TrainingData, parse_options, read_options
from core.data.plan import Plan, make_plan
from core.errors import ConfigError, DataError

NOBODY = Path("/nowhere")


def write(path: Path, seed: int = 0, *, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    PILImage.fromarray(pixels).save(path, format="PNG")
    return path


def write_mask(path: Path, *, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size, size), dtype=np.uint8)
    pixels[2:5, 2:5] = 255
    PILImage.fromarray(pixels).save(path, format="PNG")
    return path


def fill(root: Path, *folders: str, n: int = 6) -> Path:
    for index, folder in enumerate(folders):
        for i in range(n):
            write(root / folder / f"im{i}.png", seed=100 * index + i)
    return root


def codes(plan: Plan) -> list[str]:
    return [decision.code for decision in plan.decisions]


def say(plan: Plan, code: str) -> str:
    return next(decision.sentence for decision in plan.decisions if decision.code == code)


@pytest.mark.parametrize(
    ("names", "disease"),
    [
        (("normal", "pneumonia"), "pneumonia"),
        (("Benign", "Non-small-cell carcinoma"), "Non-small-cell carcinoma"),
        (("Non-Hodgkin lymphoma", "Normal"), "Non-Hodgkin lymphoma"),
        (("non-covid", "COVID-19"), "COVID-19"),
        (("no_dr", "dr"), "dr"),
        (("No finding", "effusion"), "effusion"),
        (("normal", "not normal"), "not normal"),
        (("NotNormal", "Normal"), "NotNormal"),
        (("benign", "malignant, invasive"), "malignant, invasive"),
        (("Covid_negative", "Covid_positive"), "Covid_positive"),
        (("Parasitized", "Uninfected"), "Parasitized"),
        (("0_normal", "1_pneumonia"), "1_pneumonia"),
        (("Normal cases", "Malignant cases"), "Malignant cases"),
        (("正常", "肺炎"), "肺炎"),
        (("非肺炎", "肺炎"), "肺炎"),
    ],
)
def test_a_name_with_one_reading_says_which_class_is_the_disease(
    names: tuple[str, str], disease: str
) -> None:
    for pair in (names, names[::-1]):
        found, said = decide_disease(pair, said=None, model=None, root=NOBODY)
        assert found == disease
        assert disease in said[0].sentence


@pytest.mark.parametrize(
    "names",
    [
        ("1", "2"),
        ("0", "1"),
        ("class0", "class_1"),
        ("stage 0", "stage 1"),
        ("none", "1"),
        ("normal", "healthy"),
        ("negative", "non-covid"),
        ("covid", "pneumonia"),
        ("Non-Hodgkin lymphoma", "Hodgkin lymphoma"),
        ("non-responder", "responder"),
        ("non-cancer", "melanoma"),
        ("left", "right"),
        ("disease", "diseased"),
        ("yes", "no"),
    ],
)
def test_two_readings_or_none_are_asked_about(names: tuple[str, str]) -> None:
    for pair in (names, names[::-1]):
        found, said = decide_disease(pair, said=None, model=None, root=NOBODY)
        assert found is None
        assert [one.code for one in said] == ["disease.ask"]
        assert said[0].kind == "question"


def test_a_number_of_the_model_counts_for_its_own_data_only(tmp_path: Path) -> None:
    own = TrainingData("1", root=str(tmp_path.resolve()))
    assert decide_disease(("0", "1"), said=None, model=own, root=tmp_path)[0] == "1"
    other = TrainingData("1", root="/elsewhere")
    assert decide_disease(("0", "1"), said=None, model=other, root=tmp_path)[0] is None
    named = TrainingData("covid", root="/elsewhere")
    assert decide_disease(("covid", "flu"), said=None, model=named, root=tmp_path)[0] == "covid"


def test_an_answer_against_the_names_is_obeyed_and_loud() -> None:
    found, said = decide_disease(("normal", "flu"), said="normal", model=None, root=NOBODY)
    assert found == "normal"
    assert [one.kind for one in said] == ["said", "warning"]
    assert "reads like the class without one" in said[1].sentence


def test_the_decision_reaches_the_data_set_with_its_reason(tmp_path: Path) -> None:
    plan = make_plan(fill(tmp_path, "normal", "flu", n=8))
    assert plan.class_names == ("normal", "flu")
    assert plan.disease_reason == (
        "“flu” is the disease, because “normal” says that nothing was found."
    )
    assert read_dataset(tmp_path).plan is not None


def test_numbers_are_asked_in_every_layout(tmp_path: Path) -> None:
    folders = fill(tmp_path / "folders", "0", "1")
    splits = fill(tmp_path / "splits", "train/1", "train/2", "test/1", "test/2")
    table = fill(tmp_path / "table", "images", n=8)
    rows = "".join(f"images/im{i}.png;{i % 2}\n" for i in range(8))
    (table / "manifest.csv").write_text(f"File;Label\n{rows}", encoding="utf-8")
    for root in (folders, splits, table):
        plan = make_plan(root)
        assert plan.disease_class is None
        with pytest.raises(DataError, match="Which class is the disease") as caught:
            split_plan(plan, seeds=[0])
        assert caught.value.code == "data.disease_class"


def test_masks_are_masks_at_every_level(tmp_path: Path) -> None:
    for name in ("Normal", "COVID"):
        for i in range(8):
            write(tmp_path / name / "images" / f"x{i}.png", seed=i)
            write_mask(tmp_path / name / "masks" / f"x{i}.png")
    plan = make_plan(tmp_path)
    assert len(plan.found) == 16
    assert {one.group for one in plan.found} == {""}
    one = next(found for found in plan.found if found.key == "COVID/images/x3.png")
    assert one.mask == tmp_path / "COVID" / "masks" / "x3.png"
    assert "16 files in the folders “masks”" in say(plan, "masks.folders")
    assert "“images”" in say(plan, "levels")
    top = make_plan(fill(tmp_path / "top", "data/normal", "data/flu", "masks/normal", "masks/flu"))
    assert len(top.found) == 12
    assert {one.mask.parent.name for one in top.found if one.mask} == {"normal", "flu"}
    assert all(one.mask and one.mask.parent.name == one.class_name for one in top.found)
    kept = make_plan(tmp_path / "top", DataOptions(folders=(("masks", "skip"),)))
    assert not any(one.mask for one in kept.found)


def test_masks_beside_their_image_are_known_by_name_and_look(tmp_path: Path) -> None:
    for name in ("normal", "flu"):
        for i in range(8):
            write(tmp_path / "a" / name / f"x ({i}).png", seed=i)
            write_mask(tmp_path / "a" / name / f"x ({i})_mask.png")
            write(tmp_path / "b" / name / f"x{i}.png", seed=i)
            write(tmp_path / "b" / name / f"x{i}_annotated.png", seed=50 + i)
    masks = make_plan(tmp_path / "a")
    assert len(masks.found) == 16
    assert all(
        one.mask and one.mask.stem == f"{one.path.stem}_mask" for one in masks.found if one.path
    )
    assert say(masks, "masks.files") == (
        "Masks of the image of the same name: 16, such as “x (0)_mask.png”."
    )
    copies = make_plan(tmp_path / "b")
    assert len(copies.found) == 16
    assert not any(one.mask for one in copies.found)
    assert "Left out: 16 named like masks" in say(copies, "masks.copies")
    assert "left.outside" not in codes(copies)
    images = make_plan(tmp_path / "b", DataOptions(mask_files="none"))
    assert len(images.found) == 32
    lonely = fill(tmp_path / "c", "normal", "flu")
    write(lonely / "flu" / "y_mask.png")  # no image y: a name like any other
    assert len(make_plan(lonely).found) == 13


def test_kinds_of_a_class_are_no_patients(tmp_path: Path) -> None:
    fill(tmp_path, "normal", n=10)
    fill(tmp_path, "pneumonia/bacteria", "pneumonia/virus", n=10)
    plan = make_plan(tmp_path)
    assert {one.group for one in plan.found} == {""}
    assert "“bacteria”, “virus” are kinds of “pneumonia”" in say(plan, "kinds")
    assert len(read_dataset(tmp_path).subset("val")) > 0
    said = DataOptions(folders=(("bacteria", "patient"), ("virus", "patient")))
    told = make_plan(tmp_path, said)
    assert {one.group for one in told.found} == {"", "pneumonia/bacteria", "pneumonia/virus"}
    deep = fill(
        tmp_path / "deep", "normal/p1", "normal/p2", "flu/a/p1", "flu/a/p2", "flu/b/p3", n=9
    )
    groups = {one.group for one in make_plan(deep).found}
    assert groups == {"normal/p1", "normal/p2", "flu/a/p1", "flu/a/p2", "flu/b/p3"}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("Train", "Tst"),
        ("train_images", "test_images"),
        ("trainset", "Test-Data"),
        ("训练集", "测试集"),
    ],
)
def test_splits_are_known_by_their_words(tmp_path: Path, train: str, test: str) -> None:
    fill(tmp_path, f"{train}/normal", f"{train}/disease", f"{test}/normal", f"{test}/Disease")
    plan = make_plan(tmp_path)
    assert plan.count() == {
        "train": {"normal": 6, "Disease": 6},
        "test": {"normal": 6, "Disease": 6},
    }
    assert "they hold the same classes" in say(plan, "splits.both")
    assert "“Disease”, “disease” are one class" in say(plan, "classes.merged")
    for name in (train, test):
        with pytest.raises(DataError, match="is not one of the classes"):
            make_plan(tmp_path, DataOptions(disease_class=name))


def test_splits_inside_the_classes_folds_and_wrappers(tmp_path: Path) -> None:
    below = make_plan(
        fill(tmp_path / "below", "normal/train", "normal/test", "flu/train", "flu/test")
    )
    assert below.count() == {"train": {"normal": 6, "flu": 6}, "test": {"normal": 6, "flu": 6}}
    assert {one.group for one in below.found} == {""}
    names = [f"fold{i}/{c}" for i in (1, 2, 10) for c in ("normal", "flu")]
    folds = make_plan(fill(tmp_path / "folds", *names))
    assert folds.count() == {"train": {"normal": 12, "flu": 12}, "val": {"normal": 6, "flu": 6}}
    assert all(one.key.startswith("fold10/") for one in folds.found if one.split == "val")
    inner = [f"chest_xray/chest_xray/{s}/{c}" for s in ("train", "val", "test") for c in "NP"]
    wrapped = make_plan(fill(tmp_path / "wrapped", *inner), DataOptions(disease_class="P"))
    assert set(wrapped.count()) == {"train", "val", "test"}
    assert "chest_xray/chest_xray" in say(wrapped, "wrapper")


def test_split_words_without_class_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Testing, Training have the names of splits") as caught:
        make_plan(fill(tmp_path, "Training", "Testing"), DataOptions(disease_class="Testing"))
    assert caught.value.code == "data.splits"
    said = DataOptions(
        folders=(("Training", "class"), ("Testing", "class")), disease_class="Testing"
    )
    assert make_plan(tmp_path, said).class_names == ("Training", "Testing")


@pytest.mark.parametrize("name", ["train", "Testing", "val"])
def test_a_folder_called_like_a_split_is_no_class_beside_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="names of splits") as caught:
        make_plan(fill(tmp_path, "normal", name))
    assert caught.value.code == "data.splits"
    said = DataOptions(folders=((name, "class"),))
    assert make_plan(tmp_path, said).class_names == ("normal", name)


def test_stray_files_and_system_folders_change_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "normal", "flu")
    np.savez(tmp_path / "features.npz", embeddings=np.zeros((4, 2)))
    (tmp_path / "index.csv").write_text("a,b\n1,2\n")
    (tmp_path / "backup.zip").write_bytes(b"PK")
    (tmp_path / "flu" / "notes.txt").write_text("x")
    for folder in (
        "@eaDir",
        ".thumbnails",
        ".AppleDouble",
        "#recycle",
        "lost+found",
        "$RECYCLE.BIN",
    ):
        write(tmp_path / "normal" / folder / "im0.png" / "SYNOPHOTO_THUMB_M.jpg")
    plan = make_plan(tmp_path)
    assert len(plan.found) == 12
    assert plan.class_names == ("normal", "flu")
    assert say(plan, "left.system").startswith("Left out: 6 in folders of the system")
    assert say(plan, "left.kinds").startswith("Left out: 4 whose names")


@pytest.mark.parametrize(
    "name",
    [
        "malignant, invasive",
        "a=b",
        'quo"te',
        " spaced ",
        "ＦＵＬＬ",
        "*bold* [red]x[red]",
        "a; b|c",
        "$x$",
    ],
)
def test_class_names_are_data(tmp_path: Path, name: str) -> None:
    plan = make_plan(fill(tmp_path / "a", name, "other"), DataOptions(disease_class=name))
    assert plan.class_names == ("other", name)
    table = fill(tmp_path / "b", "x", n=4) / "manifest.csv"
    with table.open("w", newline="", encoding="utf-8") as handle:
        rows = [[f"x/im{i}.png", f"{name}/[b]" if i % 2 else "other"] for i in range(4)]
        csv.writer(handle).writerows([["file", "label"], *rows])
    slashed = f"{name}/[b]".strip()
    assert make_plan(table, DataOptions(disease_class=slashed)).class_names == ("other", slashed)
    kept = read_options(plan.options.to_json())
    assert kept == plan.options


def test_spellings_of_one_class_are_one_class(tmp_path: Path) -> None:
    fill(tmp_path, "train/NORMAL", "train/flu", "test/Normal ", "test/ＦＬＵ")
    plan = make_plan(tmp_path)
    assert len(plan.class_names) == 2
    assert Counter(one.class_name for one in plan.found).most_common() == [
        (plan.class_names[0], 12),
        (plan.class_names[1], 12),
    ]


def test_more_classes_are_merged_by_name(tmp_path: Path) -> None:
    fill(tmp_path, "normal", "bacteria", "virus")
    with pytest.raises(DataError, match="found 3: “bacteria”, “normal”, “virus”"):
        make_plan(tmp_path).require_answers()
    said = parse_options(classes=["bacteria=pneumonia", "virus=pneumonia"])
    assert make_plan(tmp_path, said).class_names == ("normal", "pneumonia")
    left = make_plan(tmp_path, DataOptions(folders=(("virus", "skip"),)))
    assert left.class_names == ("normal", "bacteria")
    assert say(left, "left.skipped").startswith("Left out: 6 in folders that you named (“virus”)")
    with pytest.raises(DataError, match="there is no such folder in the data"):
        make_plan(tmp_path, DataOptions(folders=(("vrius", "skip"),)))
    with pytest.raises(DataError, match="--class 'x' is not one of the classes"):
        make_plan(tmp_path, DataOptions(classes=(("x", "y"),)))


def test_patients_in_kaggle_names_are_held_together(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / "normal" / f"NORMAL2-IM-{i:04d}-0001.jpeg", seed=i)
    for person in range(10):
        for i in range(3):
            write(
                tmp_path / "pneumonia" / f"person{person}_bacteria_{i}.jpeg",
                seed=50 + 3 * person + i,
            )
    plan = make_plan(tmp_path)
    assert "Patients: 10, from the file names (“person0”: 3)" in say(plan, "patients.files")
    data = read_dataset(tmp_path, val_fraction=0.3)
    groups = [{r.group for r in data.subset(s) if r.group} for s in ("train", "val")]
    assert all(groups)
    assert not groups[0] & groups[1]
    off = make_plan(tmp_path, DataOptions(patients="none"))
    assert {one.group for one in off.found} == {""}
    pattern = make_plan(tmp_path, DataOptions(patients=r"IM-(\d+)-"))
    assert sum(bool(one.group) for one in pattern.found) == 10
    for bad in ("(", "no group", "(a)(b)"):
        with pytest.raises(DataError, match="one group"):
            DataOptions(patients=bad)


def write_dicom(path: Path, patient: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    tags = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    tags.SOPClassUID, tags.PatientID = CTImageStorage, patient
    tags.save_as(path, enforce_file_format=True)


def test_the_patient_of_dicom_files_is_their_hashed_id(tmp_path: Path) -> None:
    for name, shift in (("normal", 0), ("flu", 3)):
        for i in range(9):
            write_dicom(tmp_path / name / f"IM{i}", f"Secret^{shift + i // 3}")
    plan = make_plan(tmp_path)
    assert Counter(one.group for one in plan.found).most_common() == [
        (group, 3) for group in dict.fromkeys(one.group for one in plan.found)
    ]
    assert len({one.group for one in plan.found}) == 6
    assert "Patients: 6, from the DICOM PatientID" in say(plan, "patients.dicom")
    assert "Secret" not in repr(plan.found)
    for path in tmp_path.rglob("IM*"):
        write_dicom(path, "ANON")
    assert {one.group for one in make_plan(tmp_path).found} == {""}


def test_tables_are_read_where_they_have_one_reading(tmp_path: Path) -> None:
    fill(tmp_path, "Im ages", n=12)
    rows = [f'"Im ages\\im{i}.png";{"Normal" if i % 2 else "flu"};{i // 4}' for i in range(12)]
    text = "\n".join([" File Name ;Diagnosis;Patient ID", *rows, ";;", "", ";;;"])
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8-sig")
    plan = make_plan(tmp_path)
    assert len(plan.found) == 12
    assert plan.class_names == ("Normal", "flu")
    assert plan.found[0].key == "Im ages/im0.png"
    assert {one.group for one in plan.found} == {"0", "1", "2"}
    assert "File Name = file, Diagnosis = label, Patient ID = group" in say(plan, "layout.table")
    (tmp_path / "manifest.csv").write_text("image,path,label\na,b,c\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no column file, or several; it has 'image', 'path'"):
        make_plan(tmp_path)
    (tmp_path / "manifest.csv").write_text("file,label\nIm ages/im0.png,a,b,c\n", encoding="utf-8")
    with pytest.raises(DataError, match="in line 2: has 4 cells, the first line 2"):
        make_plan(tmp_path)
    (tmp_path / "manifest.csv").write_bytes(b"file,label\nx.png,a\ny\xff.png,b\n")
    with pytest.raises(DataError, match="line 3"):
        make_plan(tmp_path)


def test_a_table_names_files_as_the_upload_cleaned_them(tmp_path: Path) -> None:
    names = ["caf\u00e9.png", "scan_12.png", "dots.png", "y" * 146 + ".png", "sub/deep.png"]
    told = [
        unicodedata.normalize("NFD", names[0]), "scan:12.png", "dots.png. ", "y" * 200 + ".png",
        "sub\\deep.png",
    ]  # fmt: skip
    for number, name in enumerate(names):
        write(tmp_path / name, seed=number)
        write(tmp_path / f"n{number}.png", seed=10 + number)
    rows = [f"{name},flu" for name in told] + [f"n{i}.png,normal" for i in range(5)]
    (tmp_path / "manifest.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    assert {one.key for one in make_plan(tmp_path).found if one.class_name == "flu"} == set(names)


def test_a_split_without_a_class_is_refused_before_reading(tmp_path: Path) -> None:
    fill(tmp_path, "train/normal", "train/flu", "val/flu")
    with pytest.raises(DataError, match="split val has no image of the class 'normal'") as caught:
        make_plan(tmp_path)
    assert caught.value.code == "data.one_class"
    assert len(make_plan(tmp_path, DataOptions(folders=(("val", "skip"),))).found) == 12


def test_both_readings_of_a_folder_are_asked_about(tmp_path: Path) -> None:
    fill(tmp_path, "normal", "flu")
    images = np.arange(16 * 4, dtype=np.uint8).reshape(16, 2, 2)
    labels = (np.arange(16) % 2).reshape(-1, 1)
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=labels)
    with pytest.raises(DataError, match="--layout folders or --layout npz"):
        make_plan(tmp_path)
    assert make_plan(tmp_path, DataOptions(layout="folders")).class_names == ("normal", "flu")
    assert make_plan(tmp_path, DataOptions(layout="npz", disease_class="1")).class_names == (
        "0",
        "1",
    )


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_not_utf8_are_carried_and_shown(tmp_path: Path) -> None:
    fill(tmp_path, "normal", "flu")
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "flu") + b"/M\xfcller.png"))
    write(odd, seed=9)
    data = read_dataset(tmp_path)
    (record,) = [r for r in data.records if "ller" in r.key]
    assert record.key == "flu/M\\xfcller.png"
    assert record.path == odd
    record.key.encode()
    assert data.plan is not None
    assert say(data.plan, "names.bytes").startswith("File names that are not UTF-8")


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected NAME=ROLE"):
        parse_options(folders=["x=nonsense"])
    with pytest.raises(ConfigError, match="expected FOUND=NAME"):
        parse_options(classes=["x"])
    with pytest.raises(ConfigError, match="--layout"):
        parse_options(layout="magic")
    with pytest.raises(ConfigError, match="data options"):
        read_options({"folders": [["x", "nonsense"]]})
    options = parse_options(folders=["a=b=train"], classes=["x=y=z"], disease_class="d")
    assert options.folders == (("a=b", "train"),)
    assert options.classes == (("x", "y=z"),)
    assert read_options(options.to_json()) == options
    for i, name in enumerate(("train", "test")):
        fill(tmp_path, f"{name}/normal", f"{name}/d", n=5 + i)
    own = TrainingData("d", root=str(tmp_path.resolve()), options=DataOptions(patients="none"))
    assert make_plan(tmp_path, model=own).options.patients == "none"
    assert make_plan(tmp_path, model=TrainingData("d")).options.patients == "auto"
