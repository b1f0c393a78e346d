"""The run configuration: frozen records, range checks, JSON in and out.

Owns every default in one place. Refuses to know paths of data or anything about pixels.
"""

import dataclasses
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from core.errors import ConfigError

_Record = TypeVar("_Record")
SCHEMA_VERSION = 1
K_CANDIDATES = (5, 9, 15, 20, 25, 30, 40, 50)
_TESTS_ONLY = "embedder.random_weights"
PRECISIONS = ("auto", "float32", "bfloat16")
# Name -> adapters side by side, none for a plain classifier; the losses: core.training.objectives.
OBJECTIVES: Mapping[str, int] = {"triplet": 1, "cross-entropy": 0, "metric-ensemble": 3}
RECIPES = ("robust", "report")
MEMBERS = {"triplet": "triplet", "metric": "metric-ensemble"}  # of an ensemble: suffix, objective
K_RULES = ("best", "one-standard-error")


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message where the condition does not hold."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class PreprocessConfig:
    """How pixels become a batch. Crop and jitter apply in training only."""

    input_size: int = 448
    crop_scale_min: float = 0.871  # share of the area; the report crops 448 out of 480
    crop_scale_max: float = 0.871
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5
    rotation_deg: float = 15.0
    stretch: float = 0.0  # width and height times 2 ** (-stretch .. stretch), each by itself
    shift: float = 0.0  # largest move to either side, share of the input size
    brightness: float = 0.15
    contrast: float = 0.15
    gamma: float = 0.0  # exponent drawn from 2 ** (-gamma .. gamma): another exposure
    blur: float = 0.0  # largest Gaussian sigma, in pixels of the input size
    noise: float = 0.0  # largest standard deviation of Gaussian noise, grey levels in 0..1

    def __post_init__(self) -> None:
        require(
            32 <= self.input_size <= 1024, f"input_size must be 32..1024, got {self.input_size}."
        )
        for name in (
            "horizontal_flip",
            "vertical_flip",
            "brightness",
            "contrast",
            "noise",
            "shift",
        ):
            value = getattr(self, name)
            require(0.0 <= value <= 1.0, f"{name} must be 0..1, got {value}.")
        require(0.0 <= self.stretch <= 1.0, f"stretch must be 0..1, got {self.stretch}.")
        require(0.0 <= self.gamma <= 3.0, f"gamma must be 0..3, got {self.gamma}.")
        require(0.0 <= self.blur <= 10.0, f"blur must be 0..10, got {self.blur}.")
        require(
            0.05 <= self.crop_scale_min <= self.crop_scale_max <= 1.0,
            "crop_scale_min and crop_scale_max must be 0.05..1 and ascending, got "
            f"{self.crop_scale_min} and {self.crop_scale_max}.",
        )
        require(
            0.0 <= self.rotation_deg <= 180.0,
            f"rotation_deg must be 0..180, got {self.rotation_deg}.",
        )


@dataclass(frozen=True)
class EmbedderConfig:
    """Which backbones, where they are cut, and the adapter on top."""

    backbones: tuple[str, ...] = ()
    tail_depth: int = 1
    hidden_dim: int = 512  # of the adapter; 0: one linear map, begun as the features' PCA
    embedding_dim: int = 128
    dropout: float = 0.5
    tta: bool = True
    exposure_views: int = 0  # crops at another exposure, beside the four test-time views
    precision: str = "auto"
    random_weights: bool = False  # tests only: the one preset that sets it is not offered

    def __post_init__(self) -> None:
        require(len(self.backbones) >= 1, "backbones must name at least one timm model.")
        require(1 <= self.tail_depth <= 4, f"tail_depth must be 1..4, got {self.tail_depth}.")
        require(self.hidden_dim >= 0 and self.embedding_dim > 1, "adapter sizes must be positive.")
        require(
            0 <= self.exposure_views <= 16,
            f"exposure_views must be 0..16, got {self.exposure_views}.",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout must be 0..1, got {self.dropout}.")
        require(
            self.precision in PRECISIONS,
            f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}.",
        )

    @property
    def n_test_views(self) -> int:
        """Views of one image that are embedded and averaged."""
        return 4 + self.exposure_views if self.tta else 1


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the adapter and the tails are trained for."""

    name: str = "triplet"
    margin: float = 0.5
    semihard_share: float = 0.0  # of the steps, first, with semi-hard mining; then batch-hard
    auxiliary_weight: float = (
        0.0  # of a linear classifier's loss on the features, for training only
    )

    def __post_init__(self) -> None:
        require(
            self.name in OBJECTIVES,
            f"objective must be one of {', '.join(OBJECTIVES)}, got {self.name!r}.",
        )
        require(0.0 < self.margin <= 2.0, f"margin must be in (0, 2], got {self.margin}.")
        require(
            0.0 <= self.semihard_share <= 1.0,
            f"semihard_share must be 0..1, got {self.semihard_share}.",
        )
        require(
            0.0 <= self.auxiliary_weight <= 100.0,
            f"auxiliary_weight must be 0..100, got {self.auxiliary_weight}.",
        )

    @property
    def n_adapters(self) -> int:
        """Adapters side by side: one per metric loss, none for a plain classifier."""
        return OBJECTIVES[self.name]


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser, the schedule, and the trunk cache."""

    epochs: int = 20
    n_images_per_class: int = 8
    adapter_lr: float = 1e-3
    tail_lr: float = 5e-6
    weight_decay: float = 1e-3
    warmup_share: float = 0.0  # of the steps, first, with rates that rise from near zero
    start_share: float = 0.0  # of the finished parameters: the untrained ones, averaged in
    n_views: int = 8  # augmented views per image in the trunk cache, beside the clean one
    val_fraction: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        require(1 <= self.epochs <= 1000, f"epochs must be 1..1000, got {self.epochs}.")
        require(
            2 <= self.n_images_per_class <= 256,
            f"n_images_per_class must be 2..256, got {self.n_images_per_class}.",
        )
        require(
            0.0 <= self.warmup_share <= 0.9,
            f"warmup_share must be 0..0.9, got {self.warmup_share}.",
        )
        require(
            0.0 <= self.start_share < 1.0,
            f"start_share must be in [0, 1), got {self.start_share}.",
        )
        require(1 <= self.n_views <= 64, f"n_views must be 1..64, got {self.n_views}.")
        require(
            0.02 <= self.val_fraction <= 0.5,
            f"val_fraction must be 0.02..0.5, got {self.val_fraction}.",
        )
        for name in ("adapter_lr", "tail_lr", "weight_decay"):
            value = getattr(self, name)
            require(0.0 <= value <= 1.0, f"{name} must be 0..1, got {value}.")


@dataclass(frozen=True)
class KnnConfig:
    """The neighbour vote and what it refuses to answer."""

    k_candidates: tuple[int, ...] = K_CANDIDATES
    k_rule: str = "best"  # or the largest K within one standard error of the best
    novelty_percentile: float = 99.0  # of leave-one-out gallery distances
    novelty_slack: float = 1.2  # factor on that distance: another camera is not another organ
    abstain_margin: float = 0.1  # calibrated p within 0.5 +- margin is not answered

    def __post_init__(self) -> None:
        require(
            bool(self.k_candidates) and all(k >= 1 for k in self.k_candidates),
            f"k_candidates must be positive integers, got {self.k_candidates}.",
        )
        require(
            self.k_rule in K_RULES,
            f"k_rule must be one of {', '.join(K_RULES)}, got {self.k_rule!r}.",
        )
        require(
            50.0 <= self.novelty_percentile <= 100.0,
            f"novelty_percentile must be 50..100, got {self.novelty_percentile}.",
        )
        require(
            1.0 <= self.novelty_slack <= 10.0,
            f"novelty_slack must be 1..10, got {self.novelty_slack}.",
        )
        require(
            0.0 <= self.abstain_margin < 0.5,
            f"abstain_margin must be in [0, 0.5), got {self.abstain_margin}.",
        )


@dataclass(frozen=True)
class EnsembleConfig:
    """The soft vote of several models."""

    min_val_accuracy: float = 0.85

    def __post_init__(self) -> None:
        require(
            0.0 <= self.min_val_accuracy <= 1.0,
            f"min_val_accuracy must be 0..1, got {self.min_val_accuracy}.",
        )


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a training run; saved beside the weights before training starts."""

    preset: str
    embedder: EmbedderConfig
    recipe: str = "report"
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Return the record as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> "RunConfig":
        """Rebuild the record; unknown keys and other schema versions are refused.

        Raises:
            ConfigError: malformed JSON, an unknown key, a wrong type or a value out of range.
        """
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as err:
            raise ConfigError(f"config.json is not JSON ({err}); restore the file.") from err
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        require(
            version == SCHEMA_VERSION,
            f"config.json: expected schema_version {SCHEMA_VERSION}, got {version!r}.",
        )
        return build_record(RunConfig, raw, "config")

    def for_members(self, name: str) -> dict[str, "RunConfig"]:
        """The models that an ensemble of this name is trained from, each with its objective."""
        return {
            f"{name}-{suffix}": dataclasses.replace(
                self, objective=dataclasses.replace(self.objective, name=objective)
            )
            for suffix, objective in MEMBERS.items()
        }

    def with_overrides(self, assignments: Sequence[str]) -> "RunConfig":
        """Apply ``section.key=value`` strings, values in JSON (bare words are strings)."""
        raw = dataclasses.asdict(self)
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            section, dot, key = path.strip().partition(".")
            require(bool(equals and dot), f"expected section.key=value, got {assignment!r}.")
            require(
                isinstance(raw.get(section), dict) and key in raw[section],
                f"unknown setting {path!r}; sections are "
                + ", ".join(k for k, v in raw.items() if isinstance(v, dict))
                + ".",
            )
            require(path.strip() != _TESTS_ONLY, f"{_TESTS_ONLY} is for tests and cannot be set.")
            try:
                raw[section][key] = json.loads(text)
            except json.JSONDecodeError:
                raw[section][key] = text
        return build_record(RunConfig, raw, "config")


def build_record(cls: type[_Record], raw: object, where: str) -> _Record:
    """Build a frozen dataclass from plain JSON values, refusing unknown keys and wrong types.

    Args:
        cls: the dataclass; it may hold others.
        raw: JSON values; lists become tuples.
        where: what a message calls the record.

    Raises:
        ConfigError: what is wrong, where, and what was found there.
    """
    try:
        adapter = TypeAdapter(cls)
        return adapter.validate_json(json.dumps(raw), strict=True, extra="forbid")
    except ValidationError as err:
        raise ConfigError(_explain(err, where)) from err


def _explain(err: ValidationError, where: str) -> str:
    lines = []
    for fault in err.errors(include_url=False):
        place = ".".join((where, *map(str, fault["loc"])))
        says_all = fault["type"] in ("missing", "value_error")
        found = "" if says_all else f", got {reprlib.repr(fault['input'])}"
        lines.append(f"{place}: {fault['msg'].removeprefix('Value error, ').rstrip('.')}{found}.")
    return " ".join(lines)
