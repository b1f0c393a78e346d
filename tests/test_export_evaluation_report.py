"""The report: numbers match the evaluation, nothing is fetched, every CLAIM item is placed."""

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from pypdf import PdfReader

from core.assessment.assess import assess
from core.assessment.store import load_evaluation, save_study
from core.config import Settings, build_preset
from core.errors import CheckpointError, ConfigError
from core.export.evaluation_report import build_report, figures, to_html, to_pdf, write_report
from core.export.evaluation_report.blocks import Paragraph, Report, Section, TableBlock
from core.export.evaluation_report.claim import IN_PART, ITEMS
from core.export.evaluation_report.methods import describe_methods
from core.export.evaluation_report.recipe import (
    say_choice,
    say_fitting,
    say_network,
    say_validation,
)
from core.models.bundle import ModelBundle

ROBUSTNESS = {
    "n": 8,
    "rows": [
        {"kind": kind, "level": level, "strength": 1.0, "accuracy": 0.9 - level / 10,
         "accuracy_ci95": [0.5, 0.95], "auroc": 0.8}
        for kind, level in (("none", 0), ("blur", 1), ("blur", 2), ("blur", 3))
    ],
}  # fmt: skip
EXPLANATIONS = {
    "n": 8,
    "n_masks": 8,
    "rows": [
        {"backbone": "mean", "method": "integrated", "pointing_game": 0.625,
         "pointing_ci95": [0.3, 0.9], "energy_in_mask": 0.3, "energy_ci95": [0.2, 0.4],
         "deletion_auc": 0.4, "deletion_ci95": [0.3, 0.5], "insertion_auc": None,
         "insertion_ci95": None, "n_faithful": 8}
    ],
    "randomisation": {"mean": 0.12},
    "agreement": 0.34,
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("reported") / "checkpoints"
    shutil.copytree(tiny_checkpoints, copy, ignore=shutil.ignore_patterns("evaluations"))
    settings = Settings(checkpoints_dir=copy, device="cpu")
    evaluation = assess("demo", copy / ".demo-data", split="test", settings=settings)
    save_study(copy, evaluation, "robustness", ROBUSTNESS)
    save_study(copy, evaluation, "explanations", EXPLANATIONS)
    return copy


@pytest.fixture(scope="module")
def name(directory: Path) -> str:
    return next((directory / "demo" / "evaluations").iterdir()).name


@pytest.fixture(scope="module")
def report(directory: Path, name: str) -> Report:
    return build_report(directory, "demo", name)


def test_every_item_is_covered_or_asked_of_the_author(report: Report) -> None:
    covered = {item for section in report.sections for item in section.items}
    table = report.sections[-1].blocks[-1]
    assert [(int(row[0]), row[1]) for row in table.rows] == list(ITEMS.items())
    asked = {int(row[0]) for row in table.rows if row[3] == "all of it"}
    assert covered | asked == set(ITEMS)
    assert not covered & asked
    titles = {section.title for section in report.sections}
    assert {row[2] for row in table.rows if int(row[0]) in covered} <= titles
    in_part = {int(row[0]): row[3] for row in table.rows if row[3] not in ("", "all of it")}
    assert in_part == {item: text for item, text in IN_PART.items() if item in covered}
    assert 32 in covered  # measured on the test split of the training data
    assert {28, 29, 30, 31, 35, 37, 39, 40} <= covered
    assert {11, 16, 44} <= asked  # what a program cannot know


def test_sections_come_in_the_order_of_the_checklist(report: Report) -> None:
    methods = [s.items[0] for s in report.sections if s.items and max(s.items) < 30]
    assert methods == sorted(methods)


def test_methods_are_those_of_the_run(tiny_bundle: ModelBundle) -> None:
    robust = dataclasses.replace(tiny_bundle.config, run=build_preset("offline"))
    network = say_network(robust)
    assert "principal components" in network
    assert "values drawn by seed" not in network
    assert "4 crops at other exposures" in network
    fitting = say_fitting(robust)
    assert "0.5 of the untrained ones (Wortsman et al. 2022" in fitting
    assert "1 times the cross-entropy of a helping" in fitting
    assert "rise over the first 20%" in fitting
    assert "dropout" not in (network + fitting).lower()
    assert "within one standard error" in say_choice(robust)

    plain = dataclasses.replace(robust, run=build_preset("offline", recipe="report"))
    assert "values drawn by seed 0" in say_network(plain)
    assert "dropout 0.5" in say_network(plain)
    assert not {"Wortsman", "helping", "rise"} & set(say_fitting(plain).replace(",", "").split())
    assert "the one with the best validation accuracy" in say_choice(plain)

    objective = dataclasses.replace(robust.run.objective, name="cross-entropy")
    bare = dataclasses.replace(robust, run=dataclasses.replace(robust.run, objective=objective))
    assert "do not vote" in say_network(bare)
    assert "no K" in say_choice(bare)
    assert "untrained" not in say_fitting(bare)  # only nets with adapters are averaged


@pytest.mark.parametrize(
    ("keys", "groups", "said"),
    [
        (["val/a.png"], [""], "is the split that came with the data."),
        (["a.png"], ["val:7"], "is the split that came with the data."),
        (["train/a.png"], ["train:7"], "is about 15% of training"),
        (["a.png"], [""], "or, where none came, about 15% of training"),
    ],
)
def test_where_validation_comes_from_is_said_as_far_as_known(
    tiny_bundle: ModelBundle, keys: list[str], groups: list[str], said: str
) -> None:
    config = dataclasses.replace(tiny_bundle.config, run=build_preset("offline"))
    assert said in say_validation(config, {"validation_answers": {"keys": keys, "groups": groups}})


def test_figures_on_images_that_the_model_was_fitted_on_are_said_to_be(
    directory: Path, name: str
) -> None:
    evaluation = load_evaluation(directory, "demo", name)
    assert evaluation.is_internal
    seen = dataclasses.replace(evaluation, result={**evaluation.result, "split": "val"})
    for one, is_said in ((evaluation, False), (seen, True)):
        (block,) = describe_methods(one).blocks
        assert ("K and calibration were fitted on" in block.text) is is_said


@pytest.mark.slow
def test_training_images_in_other_data_are_not_reported_as_an_external_test(
    directory: Path, name: str, seen_folder: Path
) -> None:
    settings = Settings(checkpoints_dir=directory, device="cpu")
    other = assess("demo", seen_folder, split="test", settings=settings)
    for one in (other.name, name):  # as the report's own data, and as the data compared with
        sections = build_report(directory, "demo", one).sections
        assert 33 not in {item for section in sections for item in section.items}
    page = to_html(build_report(directory, "demo", other.name))
    assert page.count("was trained or calibrated on 6 of these 8 images") >= 2
    folder = directory / "demo" / "evaluations" / other.name
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    record["result"] |= {"n_in_gallery": 0, "n_in_validation": 0}
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    sections = build_report(directory, "demo", other.name).sections
    assert 33 in {item for section in sections for item in section.items}
    shutil.rmtree(folder)


def test_the_html_stands_alone_and_holds_the_figures(
    report: Report, directory: Path, name: str
) -> None:
    page = to_html(report)
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page
    assert page.count("<img alt=") >= 6
    assert "SYNTHETIC" in page
    assert "Research use, not a diagnosis" in page
    result = load_evaluation(directory, "demo", name).result
    low, high = result["auroc_ci95"]
    assert f"{result['auroc']:.3f} ({low:.3f} to {high:.3f})" in page
    assert "0.625 (0.30 to 0.90)" in page
    assert "maps by integrated gradients of the vote: 0.34" in page
    assert "by integrated gradients of the vote with those of a net" in page


def test_the_pdf_has_the_same_text(report: Report) -> None:
    reader = PdfReader(io.BytesIO(to_pdf(report)))
    text = "\n".join(page.extract_text() for page in reader.pages)
    assert 2 <= len(reader.pages) <= 12
    for section in report.sections:
        assert section.title in text
    assert "Research use, not a diagnosis." in text
    assert len([image for page in reader.pages for image in page.images]) >= 6


def test_foreign_names_are_text_not_markup(report: Report) -> None:
    strange = dataclasses.replace(report, title="<b>a & b</b>")
    assert "&lt;b&gt;a &amp; b" in to_html(strange)
    text = PdfReader(io.BytesIO(to_pdf(strange))).pages[0].extract_text()
    assert "<b>a & b</b>" in text


def test_chinese_names_are_set_in_a_font_that_has_them() -> None:
    table = TableBlock(("列 <a>", "n"), (("肺炎 ± 1", "2"),))
    section = Section("小结", (1,), (Paragraph("数据：胸片"), table))
    report = Report("评估", "数据", is_synthetic=False, sections=(section,))
    data = to_pdf(report)
    text = PdfReader(io.BytesIO(data)).pages[0].extract_text()
    for words in ("评估", "小结", "数据：胸片", "列 <a>", "肺炎 ± 1"):
        assert words in text, words
    assert b"STSong-Light" in data


def test_files_are_written_and_refusals_are_said(
    directory: Path, name: str, tmp_path: Path
) -> None:
    write_report(directory, "demo", name, html=tmp_path / "r.html", pdf=tmp_path / "r.pdf")
    assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.pdf"]
    with pytest.raises(CheckpointError, match="has no evaluation"):
        build_report(directory, "demo", "other-test")
    with pytest.raises(ConfigError, match="cannot write"):
        write_report(directory, "demo", name, html=Path("/proc/no/r.html"))


def test_a_confusion_matrix_of_any_class_names_is_drawn_without_boxes() -> None:
    counts = {"tp": 3, "fn": 1, "fp": 0, "tn": 4}
    by_role = figures.draw_confusion(counts, disease="disease", other="other")
    assert figures.draw_confusion(counts, disease="肺炎", other="正常") == by_role
    assert figures.draw_confusion(counts, disease="läsion", other="normal") != by_role
