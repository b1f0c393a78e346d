"""Ensembles: their record on disk, the accuracy threshold for members, the loaded model.

Owns which models can vote together and with what weight. An ensemble stores no parameters of its
own: it refers to its members. Trunks that members share are held in memory once and run once per
image.
"""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.config import SCHEMA_VERSION, Settings, build_record
from core.errors import CheckpointError, ConfigError
from core.files.names import escape_markdown
from core.files.whole import write_text
from core.gallery.projection import Projection
from core.gallery.search import Gallery
from core.models.bundle import BundleConfig, Member, ModelBundle, check_model_id
from core.models.bundle_files import (
    read_bundle,
    read_bundle_config,
    read_json,
    write_card,
    write_folder,
)
from core.models.marks import check_free, is_model
from core.models.seal import check_seal, read_identity
from core.stats.metrics import compute_metrics

KIND = "ensemble"


@dataclass(frozen=True)
class MemberRecord:
    """A member: its name and the hash of its parameters."""

    model_id: str
    weights_sha256: str
    weight: float  # validation accuracy
    identity: str = ""  # see core.models.seal; empty if the member, or the ensemble, is older


@dataclass(frozen=True)
class EnsembleRecord:
    """config.json of an ensemble."""

    model_id: str
    created: str  # ISO 8601, UTC
    members: tuple[MemberRecord, ...]
    class_names: tuple[str, ...]
    disease_class: str
    min_val_accuracy: float
    kind: str = KIND
    schema_version: int = SCHEMA_VERSION

    @property
    def weights_sha256(self) -> str:
        """Hash of the members' parameters and weights."""
        text = "\n".join(f"{m.weights_sha256}:{m.weight}" for m in self.members)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Ensemble:
    """A loaded ensemble. Shared by all users, so read-only; hold ``lock`` while it computes.

    Its album is every training image that any member has, the lead's gallery first.
    """

    record: EnsembleRecord
    members: tuple[Member, ...]
    metrics: dict[str, Any]
    lock: threading.RLock = field(default_factory=threading.RLock)
    identity: str = ""  # hash of all that answers; empty for an ensemble of an earlier version

    @property
    def model_id(self) -> str:
        """Name of the ensemble's folder."""
        return self.record.model_id

    @cached_property
    def lead(self) -> ModelBundle:
        """The member with the largest weight, whose map is shown."""
        return max(self.members, key=lambda member: member.weight).bundle

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the lead's order, normal first."""
        return self.lead.class_names

    @property
    def disease_class(self) -> str:
        """Name of the positive class."""
        return self.lead.disease_class

    @property
    def other_class(self) -> str:
        """Name of the class that is not the disease."""
        return self.lead.other_class

    @property
    def abstain_margin(self) -> float:
        """The ensemble abstains if the probability is within this distance of 0.5."""
        return self.lead.abstain_margin

    @property
    def data_id(self) -> str:
        """Hashes of the members' training data."""
        return "+".join(dict.fromkeys(member.bundle.data_id for member in self.members))

    @property
    def created(self) -> str:
        """When the ensemble was built, ISO 8601, UTC."""
        return self.record.created

    @property
    def is_synthetic(self) -> bool:
        """Whether a member was trained on the synthetic demo images."""
        return any(member.bundle.is_synthetic for member in self.members)

    @property
    def gallery(self) -> Gallery:
        """The lead's gallery: the first rows of the album and the rows of the map."""
        return self.lead.gallery

    @property
    def projection(self) -> Projection:
        """The lead's map."""
        return self.lead.projection

    def find_image(self, index: int) -> tuple[Member, int]:
        """The first member that has the image at an album position, and its gallery row."""
        for member in sorted(self.members, key=lambda m: m.bundle is not self.lead):
            row = member.find_row(index)
            if row is not None:
                return member, row
        raise IndexError(index)

    def thumbnail(self, index: int) -> NDArray[np.uint8]:
        """Thumbnail at an album position, (h, w, 3) uint8, at most 256 px."""
        member, row = self.find_image(index)
        return member.bundle.thumbnail(row)

    def encoded_thumbnail(self, index: int) -> bytes:
        """The same thumbnail as the stored PNG or JPEG file."""
        member, row = self.find_image(index)
        return member.bundle.encoded_thumbnail(row)

    def has_original(self, index: int) -> bool:
        """Whether the training image is still at its original path."""
        member, row = self.find_image(index)
        return member.bundle.has_original(row)


Model = ModelBundle | Ensemble


def build_ensemble(
    directory: Path, name: str, model_ids: list[str], *, min_val_accuracy: float
) -> Path:
    """Write an ensemble of finished models, weighted by validation accuracy.

    Args:
        directory: the checkpoints folder.
        name: of the new ensemble; must not be taken.
        model_ids: two or more models, none of them an ensemble.
        min_val_accuracy: the threshold; a model below it would add noise and is refused.

    Raises:
        CheckpointError: the name is taken, or a member is missing or damaged.
        ConfigError: too few members, a member listed twice or below the threshold, or classes that
            differ.
    """
    check_free(directory, check_model_id(name))
    if len(model_ids) < 2 or len(set(model_ids)) != len(model_ids):
        raise ConfigError(
            "an ensemble needs two or more different members, got "
            f"{', '.join(model_ids) or 'none'}.",
            code="config.members",
        )
    folders = [_find_member(directory, model_id) for model_id in model_ids]
    configs = [read_bundle_config(folder) for folder in folders]
    _check_classes(configs)
    metrics = [read_json(folder / "metrics.json") for folder in folders]
    records = tuple(
        dataclasses.replace(
            _admit(config, report, min_val_accuracy=min_val_accuracy),
            identity=read_identity(folder),
        )
        for folder, config, report in zip(folders, configs, metrics, strict=True)
    )
    record = EnsembleRecord(
        model_id=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        members=records,
        class_names=configs[0].class_names,
        disease_class=configs[0].class_names[configs[0].disease_index],
        min_val_accuracy=min_val_accuracy,
    )
    joint = _measure_validation(configs, metrics, [member.weight for member in records])
    with write_folder(directory / name) as temporary:
        write_text(temporary / "config.json", json.dumps(dataclasses.asdict(record), indent=2))
        write_text(temporary / "metrics.json", json.dumps(joint, indent=2))
        write_card(temporary, _write_card(record, joint))
    return directory / name


def _find_member(directory: Path, model_id: str) -> Path:
    folder = directory / check_model_id(model_id)
    if not is_model(folder):
        raise CheckpointError(
            f"no model {model_id!r} in {directory}; see `python -m core models`.",
            code="checkpoint.unknown",
            params={"model_id": model_id, "known": ""},
        )
    if is_ensemble(folder):
        raise ConfigError(
            f"{model_id!r} is itself an ensemble; name its members instead.", code="config.members"
        )
    return folder


def _check_classes(configs: list[BundleConfig]) -> None:
    """Check that class names and disease class match; the order of the classes may differ."""
    first = configs[0]
    for config in configs[1:]:
        same_names = set(config.class_names) == set(first.class_names)
        disease = config.class_names[config.disease_index]
        if not same_names or disease != first.class_names[first.disease_index]:
            raise ConfigError(
                f"models cannot vote together: {first.model_id!r} knows "
                f"{', '.join(first.class_names)} with disease "
                f"{first.class_names[first.disease_index]!r}, {config.model_id!r} knows "
                f"{', '.join(config.class_names)} with disease {disease!r}.",
                code="config.member_classes",
            )


def _admit(
    config: BundleConfig, metrics: dict[str, Any], *, min_val_accuracy: float
) -> MemberRecord:
    accuracy = float(metrics["validation"]["accuracy"])
    if accuracy < min_val_accuracy:
        raise ConfigError(
            f"model {config.model_id!r} has a validation accuracy of {accuracy:.3f}, below the "
            f"minimum of {min_val_accuracy:.2f} for voting: a weak member adds noise. Leave it "
            "out, train it better, or set --min-val-accuracy lower.",
            code="config.gate",
            params={"model_id": config.model_id, "accuracy": accuracy, "gate": min_val_accuracy},
        )
    return MemberRecord(config.model_id, config.weights_sha256, accuracy)


def mix_validation(
    metrics: Sequence[Mapping[str, Any]], *, data_ids: Sequence[str], weights: Sequence[float]
) -> dict[str, Any] | None:
    """Combine the members' predictions on the validation images that all of them held out.

    Args:
        metrics: the content of each member's metrics.json.
        data_ids: data id of each member; the same file name in other data is a different image.
        weights: of the members.

    Returns:
        ``validation_answers`` with the mixed ``p_disease``, (N,) float64; None if the members
        differ in the images or their labels, or if a member stored no predictions.
    """
    answers = [report.get("validation_answers") or {} for report in metrics]
    asked = [
        (data_id, answer.get("keys"), answer.get("is_disease"))
        for data_id, answer in zip(data_ids, answers, strict=True)
    ]
    if not all(answers) or any(one != asked[0] for one in asked):
        return None
    mixed = np.average([answer["p_disease"] for answer in answers], axis=0, weights=weights)
    return {**answers[0], "p_disease": mixed}


def _measure_validation(
    configs: list[BundleConfig], metrics: list[dict[str, Any]], weights: list[float]
) -> dict[str, Any]:
    """Validation metrics of the vote itself, if all members held out the same images."""
    joint: dict[str, Any] = {"n_gallery": max(int(report["n_gallery"]) for report in metrics)}
    data_ids = [config.data_id for config in configs]
    mixed = mix_validation(metrics, data_ids=data_ids, weights=weights)
    if mixed is None:
        return joint
    truth = np.array(mixed["is_disease"], dtype=bool)
    report = compute_metrics(truth, mixed["p_disease"], groups=mixed["groups"])
    return {**joint, "validation": dataclasses.asdict(report)}


def _write_card(record: EnsembleRecord, metrics: dict[str, Any]) -> str:
    members = "\n".join(f"- {m.model_id}, weight {m.weight:.3f}" for m in record.members)
    report = metrics.get("validation")
    figure = (
        f"Validation, {report['n']} images: accuracy {report['accuracy']:.3f}, "
        f"AUROC {report['auroc']:.3f}"
        if report
        else "The members hold out different images: no joint validation figure"
    )
    return f"""# {record.model_id}

Research use, not a diagnosis.

- Made {record.created[:16].replace("T", " ")} UTC: a soft vote weighted by validation accuracy,
  minimum validation accuracy of a member {record.min_val_accuracy:.2f}
- Classes {", ".join(map(escape_markdown, record.class_names))}; the class that counts as disease:
  {escape_markdown(record.disease_class)}
- {figure}

Members:

{members}
"""


def is_ensemble(folder: Path) -> bool:
    """Whether a model folder holds an ensemble."""
    return read_json(folder / "config.json").get("kind") == KIND


def read_record(folder: Path) -> EnsembleRecord:
    """Read config.json of an ensemble, and check that its members are unchanged.

    Raises:
        CheckpointError: it is damaged, or a member is missing or has been replaced.
    """
    try:
        record = build_record(EnsembleRecord, read_json(folder / "config.json"), "config.json")
    except ConfigError as err:
        raise CheckpointError(
            f"ensemble {folder.name!r} cannot be loaded ({err}). Delete it and build it again.",
            code="checkpoint.damaged",
            params={"model_id": folder.name, "reason": str(err)},
        ) from err
    for member in record.members:
        path = folder.parent / check_model_id(member.model_id)
        if not path.is_dir() or not _is_same(path, member):
            raise CheckpointError(
                f"ensemble {folder.name!r}: its member {member.model_id!r} is gone or has been "
                "replaced. Restore it, or delete the ensemble and build it again.",
                code="checkpoint.member",
                params={"model_id": folder.name, "member": member.model_id},
            )
    return dataclasses.replace(record, model_id=folder.name)


def _is_same(folder: Path, member: MemberRecord) -> bool:
    """Whether a folder still holds the member: its parameters, gallery and calibration."""
    if read_bundle_config(folder).weights_sha256 != member.weights_sha256:
        return False
    return not member.identity or read_identity(folder) == member.identity


def read_ensemble(folder: Path, settings: Settings) -> Ensemble:
    """Read an ensemble and its members; identical trunks are shared.

    Raises:
        CheckpointError: the ensemble or a member is damaged or missing.
        BackboneError: a member's pretrained parameters are not available on this machine.
    """
    seal = check_seal(folder)
    record = read_record(folder)
    bundles: list[ModelBundle] = []
    for member in record.members:
        shared = [backbone for bundle in bundles for backbone in bundle.embedder.backbones]
        bundles.append(read_bundle(folder.parent / member.model_id, settings, shared=shared))
    weights = [member.weight for member in record.members]
    lead = max(range(len(bundles)), key=lambda i: weights[i])
    album: dict[tuple[str, str], int] = {}
    places: dict[int, NDArray[np.int64]] = {}
    for index in sorted(range(len(bundles)), key=lambda i: i != lead):
        gallery = bundles[index].gallery
        images = zip(gallery.keys, gallery.sha256, strict=True)
        rows = [album.setdefault(image, len(album)) for image in images]
        places[index] = np.array(rows, dtype=np.int64)
    members = tuple(
        Member(bundle, weights[index], places[index]) for index, bundle in enumerate(bundles)
    )
    identity = seal.identity if seal else ""
    return Ensemble(record, members, read_json(folder / "metrics.json"), identity=identity)
