"""The vote of several models: weights and gate by hand, classes by name, shared trunks."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from core.answers.diagnose import diagnose
from core.answers.diagnosis import Novelty
from core.answers.reliability import describe_reliability
from core.assessment.activation_gate import check_gate
from core.assessment.predict_split import evaluate
from core.config import Settings
from core.data.datasets import Dataset
from core.errors import CheckpointError, ConfigError
from core.images.decode import Image, decode, encode_png, load
from core.images.phantom import draw
from core.models import registry
from core.models.bundle import ModelBundle
from core.models.ensemble import Ensemble, build_ensemble, mix_validation
from core.models.seal import write_seal
from core.network.embedder import embed_together
from core.training.run import train

CPU = Settings(device="cpu")
PAIR = ["demo-triplet", "demo-metric"]
NOT_NOVEL = Novelty(10.0, False)


def eye(seed: int = 900001) -> Image:
    picture = draw(seed, is_diseased=True, size=96).pixels
    return decode(encode_png(picture), name=f"{seed}.png")


@pytest.fixture
def models(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of the two members that a test can change."""
    for name in PAIR:
        shutil.copytree(tiny_checkpoints / name, tmp_path / name)
    return tmp_path


def set_validation(models: Path, name: str, accuracy: float) -> None:
    path = models / name / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    metrics["validation"]["accuracy"] = accuracy
    path.write_text(json.dumps(metrics), encoding="utf-8")
    write_seal(models / name)


def weigh(ensemble: Ensemble, *weights: float) -> Ensemble:
    members = zip(ensemble.members, weights, strict=True)
    changed = tuple(dataclasses.replace(member, weight=weight) for member, weight in members)
    return dataclasses.replace(ensemble, members=changed)


def test_the_vote_by_hand(tiny_ensemble: Ensemble) -> None:
    done = diagnose(weigh(tiny_ensemble, 0.9, 0.6), [eye()], explain=False)[0]
    first, second = (m.probabilities["disease"] for m in done.members)
    assert [m.weight for m in done.members] == [0.9, 0.6]
    assert done.probabilities["disease"] == pytest.approx((0.9 * first + 0.6 * second) / 1.5)
    alone = diagnose(tiny_ensemble.members[1].bundle, [eye()], explain=False)[0]
    assert second == pytest.approx(alone.probabilities["disease"], abs=1e-6)
    assert sum(n.share for n in done.neighbours) == pytest.approx(1.0)
    by_class = {name: 0.0 for name in tiny_ensemble.class_names}
    for neighbour in done.neighbours:
        by_class[neighbour.class_name] += neighbour.share
    assert done.vote_shares == pytest.approx(by_class)


def test_an_even_vote_is_a_tie_and_gets_no_answer(
    tiny_ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([0.8, 0.2])
    monkeypatch.setattr(
        "core.answers.votes._compute_probability", lambda *_args, **_options: next(answers)
    )
    monkeypatch.setattr("core.answers.votes._measure_novelty", lambda *_args: [NOT_NOVEL])
    done = diagnose(weigh(tiny_ensemble, 0.7, 0.7), [eye()], explain=False)[0]
    assert done.probabilities["disease"] == pytest.approx(0.5)
    assert (done.status, done.abstain_reason) == ("abstained", "uncertain")
    assert done.predicted_class == "normal"  # ties go to normal, as in evaluate


def test_the_gate(models: Path) -> None:
    set_validation(models, "demo-triplet", 0.90)
    set_validation(models, "demo-metric", 0.849)
    with pytest.raises(
        ConfigError, match=r"'demo-metric' has a validation accuracy of 0\.849, .* minimum of 0\.85"
    ):
        build_ensemble(models, "both", PAIR, min_val_accuracy=0.85)
    assert not (models / "both").exists()
    set_validation(models, "demo-metric", 0.85)
    folder = build_ensemble(models, "both", PAIR, min_val_accuracy=0.85)
    ensemble = registry.load_bundle(models, "both", settings=CPU)
    assert [m.weight for m in ensemble.members] == [0.90, 0.85]
    assert ensemble.lead.model_id == "demo-triplet"
    assert "soft vote" in (folder / "card.md").read_text(encoding="utf-8")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**raw, **changes}), encoding="utf-8")
    write_seal(folder)


def test_validation_images_are_the_same_only_in_the_same_data_with_the_same_truth() -> None:
    def say(truth: list[bool], p: list[float]) -> dict[str, object]:
        answers = {"keys": ["a", "b"], "groups": ["", ""], "is_disease": truth, "p_disease": p}
        return {"validation_answers": answers}

    one, two = say([True, False], [0.9, 0.2]), say([True, False], [0.5, 0.4])
    mixed = mix_validation([one, two], data_ids=["x", "x"], weights=[3.0, 1.0])
    assert mixed is not None
    assert mixed["p_disease"] == pytest.approx([0.8, 0.25])
    turned = say([False, True], [0.1, 0.9])
    assert mix_validation([one, turned], data_ids=["x", "x"], weights=[1.0, 1.0]) is None
    assert mix_validation([one, two], data_ids=["x", "y"], weights=[1.0, 1.0]) is None
    assert mix_validation([one, {}], data_ids=["x", "x"], weights=[1.0, 1.0]) is None


def test_members_of_other_data_have_no_joint_figures(models: Path) -> None:
    build_ensemble(models, "same", PAIR, min_val_accuracy=0.0)
    shutil.copytree(models / "demo-metric", models / "elsewhere")
    edit_config(models / "elsewhere", data_id="other")
    build_ensemble(models, "both", ["demo-triplet", "elsewhere"], min_val_accuracy=0.0)
    kept = [json.loads((models / n / "metrics.json").read_text()) for n in ("same", "both")]
    assert ["validation" in metrics for metrics in kept] == [True, False]
    assert describe_reliability(registry.load_bundle(models, "both", settings=CPU)) is None
    registry.activate(models, "same")
    assert check_gate(models, "both").code == "incomparable"


def test_classes_are_matched_by_name(models: Path) -> None:
    edit_config(models / "demo-metric", class_names=["healthy", "disease"])
    with pytest.raises(ConfigError, match=r"cannot vote together: .*normal.*healthy"):
        build_ensemble(models, "both", PAIR, min_val_accuracy=0.0)
    edit_config(models / "demo-metric", class_names=["normal", "disease"], disease_index=0)
    with pytest.raises(ConfigError, match="with disease 'normal'"):
        build_ensemble(models, "both", PAIR, min_val_accuracy=0.0)


def test_another_class_order_changes_no_answer(models: Path) -> None:
    build_ensemble(models, "both", PAIR, min_val_accuracy=0.0)
    before = diagnose(registry.load_bundle(models, "both", settings=CPU), [eye()])[0]
    folder = models / "demo-metric"
    with np.load(folder / "gallery.npz") as stored:
        arrays = dict(stored)
    arrays["labels"] = 1 - arrays["labels"]
    np.savez(folder / "gallery.npz", **arrays)
    edit_config(folder, class_names=["disease", "normal"], disease_index=0)
    shutil.rmtree(models / "both")
    build_ensemble(models, "both", PAIR, min_val_accuracy=0.0)
    after = diagnose(registry.load_bundle(models, "both", settings=CPU), [eye()])[0]
    assert after.probabilities == pytest.approx(before.probabilities)
    assert after.vote_shares == pytest.approx(before.vote_shares)
    assert [n.class_name for n in after.neighbours] == [n.class_name for n in before.neighbours]
    for name, heatmap in before.heatmaps.items():
        np.testing.assert_allclose(after.heatmaps[name], heatmap, atol=1e-4)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["demo-triplet"], "two or more different members, got demo-triplet"),
        (["demo-triplet", "demo-triplet"], "two or more different members"),
        ([], "got none"),
        (["demo-triplet", "ghost"], "no model 'ghost'"),
        (["demo-triplet", "both"], "itself an ensemble"),
    ],
)
def test_members_that_cannot_be(models: Path, members: list[str], message: str) -> None:
    build_ensemble(models, "both", PAIR, min_val_accuracy=0.0)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        build_ensemble(models, "other", members, min_val_accuracy=0.0)


def test_a_member_that_is_gone_or_replaced_is_said(models: Path) -> None:
    build_ensemble(models, "both", PAIR, min_val_accuracy=0.0)
    with pytest.raises(CheckpointError, match="a member of both"):
        registry.delete_model(models, "demo-metric")
    shutil.move(models / "demo-metric", models / ".away")
    summary = registry.find_model(models, "both")
    assert summary.problem is not None
    assert "its member 'demo-metric' is gone" in summary.problem
    assert registry.active_model_id(models) == "demo-triplet"
    shutil.copytree(models / "demo-triplet", models / "demo-metric")
    with pytest.raises(CheckpointError, match="has been replaced"):
        registry.load_bundle(models, "both", settings=CPU)
    registry.delete_model(models, "both")
    registry.delete_model(models, "demo-metric")


def test_the_listing_names_the_members(tiny_checkpoints: Path) -> None:
    summary = registry.find_model(tiny_checkpoints, "demo")
    assert summary.members == tuple(PAIR)
    assert summary.problem is None
    assert summary.val_accuracy is not None
    assert summary.n_gallery > 0


def test_a_shared_trunk_is_kept_once_and_runs_once(
    tiny_ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (member.bundle.embedder for member in tiny_ensemble.members)
    for mine, other in zip(one.backbones, two.backbones, strict=True):
        assert mine.trunk is other.trunk
        assert mine.tail is not other.tail
    runs: list[str] = []
    kind = type(one.backbones[0])
    real = kind.run_trunk

    def count(self: object, batch: torch.Tensor) -> torch.Tensor:
        runs.append(self.name)  # type: ignore[attr-defined]
        return real(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "run_trunk", count)
    images = [eye(s).pixels for s in (900001, 900002)]
    together = embed_together([one, two], images)
    assert sorted(runs) == sorted(b.name for b in one.backbones)
    for embedder, outcome in zip((one, two), together, strict=True):
        alone = embedder.embed_batch(images)
        np.testing.assert_allclose(outcome.embeddings, alone.embeddings, atol=1e-6)


@pytest.mark.slow
def test_members_of_other_input_sizes_and_data_vote_together(
    models: Path, phantom_dataset: Dataset, tiny_bundle: ModelBundle
) -> None:
    config = tiny_bundle.config.run.with_overrides(
        ["preprocess.input_size=96", "train.seed=5", "objective.name=cross-entropy"]
    )
    settings = dataclasses.replace(CPU, checkpoints_dir=models)
    train(phantom_dataset, config, name="larger", settings=settings)
    build_ensemble(models, "mixed", ["larger", "demo-triplet"], min_val_accuracy=0.0)
    mixed = weigh(registry.load_bundle(models, "mixed", settings=CPU), 0.6, 0.9)
    assert mixed.lead.model_id == "demo-triplet"
    assert mixed.data_id == tiny_bundle.data_id  # drawn with the same seed
    done = diagnose(mixed, [eye()])[0]
    # only the triplet member votes by neighbours; both contribute to the probability
    alone = diagnose(tiny_bundle, [eye()], explain=False)[0]
    assert [n.key for n in done.neighbours] == [n.key for n in alone.neighbours]
    # a classifier with the same images does not affect their distances
    assert [n.distance for n in done.neighbours] == pytest.approx(
        [n.distance for n in alone.neighbours]
    )
    assert done.probabilities["disease"] != pytest.approx(alone.probabilities["disease"])
    assert set(done.heatmaps) == {"convnext_atto", "vit_tiny_patch16_224"}
    root = phantom_dataset.root
    known = next(r for r in phantom_dataset.subset("train") if r.path)
    assert known.path is not None
    assert str(root) in str(known.path)
    seen = diagnose(mixed, [load(known.path)], explain=False)[0]
    assert [item.reason for item in seen.left_out] == ["duplicate"]


def test_evaluate_counts_agreement_and_lists_the_disputed(
    tiny_ensemble: Ensemble, phantom_dataset: Dataset
) -> None:
    result = evaluate(tiny_ensemble, phantom_dataset, split="test")
    agreement = result["agreement"]
    assert agreement["agree"] + agreement["disagree"] == result["n"]
    assert len(agreement["disputed"]) == agreement["disagree"]
    for case in agreement["disputed"]:
        assert len(set(case["members"].values())) == 2
        assert case["answer"] in tiny_ensemble.class_names
    assert [m["model_id"] for m in result["members"]] == PAIR
    single = evaluate(tiny_ensemble.members[0].bundle, phantom_dataset, split="test")
    assert result["members"][0]["accuracy"] == single["accuracy"]
    json.dumps(result)
