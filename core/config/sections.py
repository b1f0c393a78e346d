"""The run configuration: frozen records, range checks, JSON in and out.

Owns all defaults. Knows nothing of data paths or pixels.
"""

import dataclasses
import functools
import json
import reprlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from typing import Any, Final, Literal, TypeVar, cast, dataclass_transform, get_args

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from core.errors import ConfigError

_Record = TypeVar("_Record")
SCHEMA_VERSION: Final = 1
K_CANDIDATES = (5, 9, 15, 20, 25, 30, 40, 50)
_TESTS_ONLY = "embedder.random_weights"
Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS = get_args(Precision)
Objective = Literal["triplet", "cross-entropy", "metric-ensemble"]
# Name -> number of adapters, 0 for a classifier; the losses are in core.training.objectives.
OBJECTIVES: Mapping[Objective, int] = {"triplet": 1, "cross-entropy": 0, "metric-ensemble": 3}
RECIPES = ("robust", "report")
# Members of an ensemble: suffix -> objective.
MEMBERS: dict[str, Objective] = {"triplet": "triplet", "metric": "metric-ensemble"}
KRule = Literal["best", "one-standard-error"]
K_RULES = get_args(KRule)


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message if the condition is false."""
    if not condition:
        raise ConfigError(message)


@dataclass_transform(frozen_default=True, field_specifiers=(Field, field))
def _checked(cls: type[_Record]) -> type[_Record]:
    """Make a frozen dataclass that raises ConfigError for values of wrong type or out of range."""
    record: Any = dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))(cls)
    build = record.__init__

    @functools.wraps(build)
    def __init__(self: object, *args: object, **values: object) -> None:  # noqa: N807
        with explained(cls.__name__):
            build(self, *args, **values)

    record.__init__ = __init__
    checked: type[_Record] = record
    return checked


@_checked
class PreprocessConfig:
    """How pixels are converted to a batch. Crop and jitter apply only in training."""

    input_size: int = Field(default=448, ge=32, le=1024)
    # Fraction of the area; the report crops 448 out of 480.
    crop_scale_min: float = Field(default=0.871, ge=0.05, le=1)
    crop_scale_max: float = Field(default=0.871, ge=0.05, le=1)
    horizontal_flip: float = Field(default=0.5, ge=0, le=1)
    vertical_flip: float = Field(default=0.5, ge=0, le=1)
    rotation_deg: float = Field(default=15.0, ge=0, le=180)
    # Width and height times 2 ** (-stretch .. stretch), independently.
    stretch: float = Field(default=0.0, ge=0, le=1)
    # Maximum shift to either side, as a fraction of the input size.
    shift: float = Field(default=0.0, ge=0, le=1)
    brightness: float = Field(default=0.15, ge=0, le=1)
    contrast: float = Field(default=0.15, ge=0, le=1)
    # Exponent drawn from 2 ** (-gamma .. gamma), which simulates another exposure.
    gamma: float = Field(default=0.0, ge=0, le=3)
    blur: float = Field(
        default=0.0, ge=0, le=10
    )  # maximum Gaussian sigma, in pixels of the input size
    # Maximum standard deviation of Gaussian noise, grey levels in 0..1.
    noise: float = Field(default=0.0, ge=0, le=1)

    def __post_init__(self) -> None:
        require(
            self.crop_scale_min <= self.crop_scale_max,
            "crop_scale_min and crop_scale_max must be ascending, got "
            f"{self.crop_scale_min} and {self.crop_scale_max}.",
        )


@_checked
class EmbedderConfig:
    """Which backbones, where they are cut, and the adapter on top."""

    backbones: tuple[str, ...] = Field(min_length=1)  # timm models
    tail_depth: int = Field(default=1, ge=1, le=4)
    hidden_dim: NonNegativeInt = (
        512  # of the adapter; 0: one linear map, initialised by PCA of the features
    )
    embedding_dim: int = Field(default=128, ge=2)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    tta: bool = True
    # Crops at another exposure, in addition to the four test-time views.
    exposure_views: int = Field(default=0, ge=0, le=16)
    precision: Precision = "auto"
    random_weights: bool = False  # for tests only; the preset that sets it is not offered

    @property
    def n_test_views(self) -> int:
        """Number of views per image that are embedded and averaged."""
        return 4 + self.exposure_views if self.tta else 1


@_checked
class ObjectiveConfig:
    """The training objective of the adapter and the tails."""

    name: Objective = "triplet"
    margin: float = Field(default=0.5, gt=0, le=2)
    # Fraction of the steps, at the start, with semi-hard mining; the rest is batch-hard.
    semihard_share: float = Field(default=0.0, ge=0, le=1)
    # Weight of an auxiliary linear classifier's loss on the features, in training only.
    auxiliary_weight: float = Field(default=0.0, ge=0, le=100)

    @property
    def n_adapters(self) -> int:
        """Number of adapters: one per metric loss, 0 for a classifier."""
        return OBJECTIVES[self.name]


@_checked
class TrainConfig:
    """The optimiser, the schedule, and the trunk cache."""

    epochs: int = Field(default=20, ge=1, le=1000)
    n_images_per_class: int = Field(default=8, ge=2, le=256)
    adapter_lr: float = Field(default=1e-3, ge=0, le=1)
    tail_lr: float = Field(default=5e-6, ge=0, le=1)
    weight_decay: float = Field(default=1e-3, ge=0, le=1)
    # Fraction of the steps, at the start, with learning rates rising from near zero.
    warmup_share: float = Field(default=0.0, ge=0, le=0.9)
    # Weight of the untrained parameters when averaged into the trained ones.
    start_share: float = Field(default=0.0, ge=0, lt=1)
    # Augmented views per image in the trunk cache, in addition to the clean one.
    n_views: int = Field(default=8, ge=1, le=64)
    val_fraction: float = Field(default=0.15, ge=0.02, le=0.5)
    seed: int = 0


@_checked
class KnnConfig:
    """The neighbour vote and when the model abstains."""

    k_candidates: tuple[PositiveInt, ...] = Field(default=K_CANDIDATES, min_length=1)
    k_rule: KRule = "best"  # or the largest K within one standard error of the best
    novelty_percentile: float = Field(
        default=99.0, ge=50, le=100
    )  # of the gallery's leave-one-out distances
    # Factor on that distance, to allow for other cameras but not other organs.
    novelty_slack: float = Field(default=1.2, ge=1, le=10)
    # The model abstains if the calibrated p is within 0.5 +- margin.
    abstain_margin: float = Field(default=0.1, ge=0, lt=0.5)


@_checked
class EnsembleConfig:
    """The soft vote of several models."""

    min_val_accuracy: float = Field(default=0.85, ge=0, le=1)


@_checked
class RunConfig:
    """Everything that defines a training run; saved with the weights before training starts."""

    preset: str
    embedder: EmbedderConfig
    recipe: str = "report"
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    schema_version: Literal[1] = SCHEMA_VERSION

    def to_json(self) -> str:
        """Return the record as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> "RunConfig":
        """Build the record from JSON; unknown keys and other schema versions are refused.

        Raises:
            ConfigError: malformed JSON, an unknown key, a wrong type or a value out of range.
        """
        with explained("config.json"):
            config = TypeAdapter(RunConfig).validate_json(text)
        # A file without a version is refused like one with an unknown version.
        is_said = "schema_version" in json.loads(text)
        require(is_said, f"config.json: expected schema_version {SCHEMA_VERSION}, got none.")
        return config

    def for_members(self, name: str) -> dict[str, "RunConfig"]:
        """The members of an ensemble of this name, each with its objective."""
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
        cls: the dataclass; may be nested.
        raw: JSON values; lists become tuples.
        where: name of the record in messages.

    Raises:
        ConfigError: the message says what is wrong, where, and the value found.
    """
    with explained(where):
        text = json.dumps(raw)
        record: _Record = _adapt(cast(Hashable, cls)).validate_json(
            text, strict=True, extra="forbid"
        )
        return record


@functools.cache
def _adapt(cls: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, cls))


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn a pydantic ValidationError into one ConfigError listing every fault and its value."""
    try:
        yield
    except ValidationError as err:
        raise ConfigError(" ".join(_say(fault, where) for fault in err.errors())) from err


def _say(fault: Any, where: str) -> str:
    place = ".".join((where, *map(str, fault["loc"])))
    says_all = fault["type"] in ("missing", "value_error")
    found = "" if says_all else f", got {reprlib.repr(fault['input'])}"
    return f"{place}: {fault['msg'].removeprefix('Value error, ').rstrip('.')}{found}."
