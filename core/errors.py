"""The exception tree of the project and the shape check that raises ShapeError.

Owns all deliberate failures. Messages are in English; ``code`` is a stable identifier that the
pages use to look up a translation, filled with ``params``.
"""

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


class CoreError(Exception):
    """Base class of all deliberate errors: what was expected, what was found, what to do next."""

    code = "core"

    def __init__(
        self, message: str, *, code: str | None = None, params: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code or type(self).code
        self.params: dict[str, object] = dict(params or {})


class ImageError(CoreError, ValueError):
    """A file that cannot be read as an image, or a DICOM that is not supported."""

    code = "image"


class ConfigError(CoreError, ValueError):
    """A setting that is unknown, out of range, or contradicts another."""

    code = "config"


class ShapeError(CoreError, ValueError):
    """An array whose shape is not the documented one."""

    code = "shape"


class DataError(CoreError, ValueError):
    """A data folder that is unusable: no images, too few per class, a patient in two splits."""

    code = "data"


class CheckpointError(CoreError):
    """A model bundle that is missing, corrupt or incompatible."""

    code = "checkpoint"


class BackboneError(CoreError):
    """Pretrained backbone parameters that were not found or do not fit."""

    code = "backbone"


class CurationError(CoreError):
    """A change to the gallery that cannot be made, or a database that cannot be used."""

    code = "curation"


class JobError(CoreError):
    """A background job that is busy or unknown."""

    code = "job"


def check_shape(name: str, array: NDArray[Any], expected: Sequence[int | None]) -> None:
    """Raise ShapeError unless ``array.shape`` matches ``expected`` (None matches any length)."""
    shape = array.shape
    fits = len(shape) == len(expected) and all(
        want is None or want == have for want, have in zip(expected, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in expected)
        raise ShapeError(f"{name}: expected shape ({wanted}), got {tuple(shape)}.")


def locate(error: BaseException) -> str:
    """The kind of an unexpected error and where it arose, for a log.

    Its message is left out, because it may quote a file name, a tag or a path.
    """
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    cause = error.__cause__ or error.__context__
    because = f", because of {locate(cause)}" if cause is not None else ""
    return f"{type(error).__name__} at {' > '.join(frames[-8:]) or 'an unknown place'}{because}"
