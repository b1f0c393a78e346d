"""The trunk cache: activations of a data set on disk, computed once for many epochs.

Owns the files, their resumption after a kill, and the list of unreadable images. For every training
and validation image it stores the clean test-time views (they become the gallery), and for training
images also the augmented views, drawn once from the run's seed. Memory-mapped, two bytes per value:
bfloat16 if the trunk runs in bfloat16, else float16.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.datasets import Record, load_ahead, load_record
from core.errors import DataError, ImageError
from core.files.whole import write_text
from core.images.decode import Image, encode_jpeg, thumbnail
from core.network.embedder import Embedder, Progress
from core.network.transforms import augment, build_batch, build_test_views

logger = logging.getLogger(__name__)

_GROUP = 16  # images between two progress updates on disk: the most a kill can lose


@dataclass(frozen=True)
class _Progress:
    """The content of ``progress.json``."""

    key: str
    n_done: int
    sha256: dict[int, str]
    skipped: dict[int, str]


class TrunkCache:
    """Activations of ``records``, one per row, in one folder."""

    def __init__(
        self,
        folder: Path,
        embedder: Embedder,
        records: Sequence[Record],
        *,
        data_id: str = "",
        is_stored: bool = True,
    ) -> None:
        """Open or create the files.

        Args:
            folder: of the files; an interrupted build in it is continued.
            embedder: runs the trunks; its config gives the number of views.
            records: training and validation images, in a fixed order.
            data_id: of the data set; a cache of other images with these names is rebuilt.
            is_stored: False: keep no activations. Images are read and run through the trunks on
                demand, and the number of augmented views is not limited.

        Raises:
            DataError: there is not enough disk space.
        """
        self.folder = folder
        self.embedder = embedder
        self.records = tuple(records)
        self.data_id = data_id
        self.is_stored = is_stored
        config = embedder.config
        self.n_clean = config.embedder.n_test_views
        self.n_augmented = config.train.n_views
        # Augmented views are stored for training rows only.
        is_train = [record.split == "train" for record in records]
        self._train_row = np.cumsum(is_train) - 1
        folder.mkdir(parents=True, exist_ok=True)
        self._key = self._compute_key()
        self._state = self._read_progress()
        self._clean: list[np.memmap] = []
        self._augmented: list[np.memmap] = []
        if is_stored:
            n_train = max(1, sum(is_train))
            blank = embedder.run_trunks(self._blank())
            self._shapes = [tuple(a.shape[1:]) for a in blank]
            self._dtypes = [_choose_dtype(a) for a in blank]
            self._check_disk(n_train)
            self._clean = self._open("clean", len(self.records), self.n_clean)
            self._augmented = self._open("augmented", n_train, self.n_augmented)

    @property
    def is_complete(self) -> bool:
        """Whether every image has been through the trunks."""
        return self._state.n_done == len(self.records)

    @property
    def skipped(self) -> dict[str, str]:
        """Key and reason of every image that could not be read."""
        return {self.records[row].key: why for row, why in self._state.skipped.items()}

    def find_rows(self, split: str) -> NDArray[np.int64]:
        """Rows of the readable images of a split."""
        rows = [
            row
            for row, record in enumerate(self.records)
            if record.split == split and row not in self._state.skipped
        ]
        return np.array(rows, dtype=np.int64)

    def compute_sha256(self, row: int) -> str:
        """Hash of the file behind a readable row, as of when it was read."""
        return self._state.sha256[row]

    def read_clean(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Tensor]:
        """Read the test-time views' activations: (V, B, ...) per backbone."""
        if not self.is_stored:
            views = torch.stack([self._draw_clean(self._load(int(row))) for row in rows], dim=1)
            outputs = self._run(views.flatten(0, 1))
            return [a.reshape(self.n_clean, -1, *a.shape[1:]) for a in outputs]
        return [
            self._to_tensor(stored[np.asarray(rows)]).transpose(0, 1).contiguous()
            for stored in self._clean
        ]

    def read_views(self, rows: Sequence[int], views: Sequence[int]) -> list[Tensor]:
        """Read one view per row: (B, ...) per backbone. View 0 is clean, the others augmented."""
        if not self.is_stored:
            pairs = zip(rows, views, strict=True)
            drawn = [self._draw(self._load(row), row=row, view=view) for row, view in pairs]
            return self._run(torch.stack(drawn))
        return [
            self._to_tensor(
                np.stack(
                    [
                        clean[row, 0] if view == 0 else drawn[self._train_row[row], view - 1]
                        for row, view in zip(rows, views, strict=True)
                    ]
                )
            )
            for clean, drawn in zip(self._clean, self._augmented, strict=True)
        ]

    def read_image(self, row: int) -> Image:
        """Read the file behind a readable row again.

        Raises:
            ImageError: it is gone or can no longer be read.
            DataError: it has changed since it went through the trunks.
        """
        return self._load(row)

    def read_thumbnail(self, row: int) -> bytes:
        """Read the encoded thumbnail of a readable row."""
        return (self.folder / "thumbnails" / f"{row}.jpg").read_bytes()

    def build(self, *, progress: Progress | None = None) -> None:
        """Run the trunks on all missing images; safe to kill at any moment.

        Args:
            progress: called with the fraction done and a message, first before any image.
        """
        tell = progress or (lambda _done, _text: None)
        n = len(self.records)
        (self.folder / "thumbnails").mkdir(exist_ok=True)
        while not self.is_complete:
            start = self._state.n_done
            stop = min(start + _GROUP, len(self.records))
            sha256, skipped = dict(self._state.sha256), dict(self._state.skipped)
            for row, (record, image) in enumerate(load_ahead(self.records[start:stop]), start):
                tell(row / n, f"{row} of {n} images")
                if isinstance(image, ImageError):
                    if image.code == "image.missing":  # existed when listed: moved or deleted
                        raise DataError(
                            f"{record.key} is no longer there: the data was moved or removed while "
                            "training ran. Put it back, then resume.",
                            code="data.removed",
                            params={"key": record.key},
                        ) from image
                    skipped[row] = str(image)
                    logger.warning("an image was left out: %s", image.code)
                    continue
                sha256[row] = image.sha256
                self._write_row(row, image)
            for stored in (*self._clean, *self._augmented):
                stored.flush()
            self._write_progress(_Progress(self._key, stop, sha256, skipped))
            tell(stop / n, f"{stop} of {n} images")

    def delete(self) -> None:
        """Remove the files."""
        self._clean, self._augmented = [], []
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_row(self, row: int, image: Image) -> None:
        path = self.folder / "thumbnails" / f"{row}.jpg"
        path.write_bytes(encode_jpeg(thumbnail(image.pixels)))
        if not self.is_stored:
            return
        is_train = self.records[row].split == "train"
        drawn = [
            self._draw(image, row=row, view=view)[None]
            for view in range(1, self.n_augmented + 1)
            if is_train
        ]
        outputs = self._run(torch.cat([self._draw_clean(image), *drawn]))
        for clean, augmented, output in zip(self._clean, self._augmented, outputs, strict=True):
            array = _to_array(output)
            clean[row] = array[: self.n_clean]
            if is_train:
                augmented[self._train_row[row]] = array[self.n_clean :]

    def _load(self, row: int) -> Image:
        image = load_record(self.records[row])
        if image.sha256 != self._state.sha256[row]:
            raise DataError(
                f"{self.records[row].key} has changed while training ran; restore it or begin "
                "the training anew.",
                code="data.changed",
            )
        return image

    def _run(self, batch: Tensor) -> list[Tensor]:
        # A copy made outside inference mode is an ordinary tensor that autograd can use.
        return [output.clone() for output in self.embedder.run_trunks(batch)]

    def _draw_clean(self, image: Image) -> Tensor:
        return build_test_views([image.pixels], self.embedder.config)[:, 0]

    def _draw(self, image: Image, *, row: int, view: int) -> Tensor:
        """One training view (3, S, S): 0 is clean; deterministic per row and view."""
        config = self.embedder.config
        if view == 0:
            return build_batch([image.pixels], size=config.preprocess.input_size)[0]
        rng = np.random.default_rng([config.train.seed, row, view])
        return augment(image.pixels, config=config.preprocess, rng=rng)

    def _blank(self) -> Tensor:
        size = self.embedder.config.preprocess.input_size
        return torch.zeros(1, 3, size, size)

    def _to_tensor(self, stored: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(stored))
        return tensor.view(torch.bfloat16) if stored.dtype == np.uint16 else tensor.float()

    def _open(self, name: str, n_rows: int, n_views: int) -> list[np.memmap]:
        maps = []
        pairs = zip(self._shapes, self._dtypes, strict=True)
        for index, (shape, dtype) in enumerate(pairs):
            path = self.folder / f"{name}-{index}.bin"
            full = (n_rows, n_views, *shape)
            n_bytes = int(np.prod(full)) * dtype.itemsize
            if not path.is_file() or path.stat().st_size != n_bytes:
                self._state = _Progress(self._key, 0, {}, {})
                with path.open("wb") as handle:
                    handle.truncate(n_bytes)
            maps.append(np.memmap(path, dtype=dtype, mode="r+", shape=full))
        return maps

    def _check_disk(self, n_train: int) -> None:
        pairs = zip(self._shapes, self._dtypes, strict=True)
        per_view = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in pairs)
        n_views = len(self.records) * self.n_clean + n_train * self.n_augmented
        there = sum(path.stat().st_blocks * 512 for path in self.folder.glob("*.bin"))
        needed = per_view * n_views - there
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DataError(
                f"the trunk cache needs {needed / 1e9:.1f} GB in {self.folder}, but "
                f"{free / 1e9:.1f} GB are free. Free some space, set train.n_views lower than "
                f"{self.n_augmented}, or pass --no-cache-trunk (slower).",
                code="data.disk",
            )

    def _compute_key(self) -> str:
        config = self.embedder.config
        parts = [
            self.data_id,
            *(backbone.trunk_hash for backbone in self.embedder.backbones),
            *(f"{record.key}:{record.split}" for record in self.records),
            repr(config.preprocess),
            f"{config.train.seed}:{self.n_clean}:{self.n_augmented}:{self.embedder.precision}",
            str(self.is_stored),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _read_progress(self) -> _Progress:
        path = self.folder / "progress.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["key"] == self._key:
                sha256 = {int(row): text for row, text in raw["sha256"].items()}
                skipped = {int(row): text for row, text in raw["skipped"].items()}
                return _Progress(self._key, int(raw["n_done"]), sha256, skipped)
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError):  # e.g. after a power cut
            logger.warning("the progress of a trunk cache is damaged; it is built anew")
        return _Progress(self._key, 0, {}, {})

    def _write_progress(self, state: _Progress) -> None:
        told = {
            "key": state.key,
            "n_done": state.n_done,
            "sha256": state.sha256,
            "skipped": state.skipped,
        }
        write_text(self.folder / "progress.json", json.dumps(told), durable=False)
        self._state = state


def _choose_dtype(activation: Tensor) -> np.dtype[np.uint16] | np.dtype[np.float16]:
    """Choose a two-byte type: bfloat16 as raw bits (NumPy lacks it), float32 as float16."""
    half = activation.dtype == torch.bfloat16
    return np.dtype(np.uint16) if half else np.dtype(np.float16)


def _to_array(tensor: Tensor) -> NDArray[np.generic]:
    on_cpu = tensor.detach().cpu().contiguous()
    if on_cpu.dtype == torch.bfloat16:
        bits: NDArray[np.generic] = on_cpu.view(torch.uint16).numpy()
        return bits
    limit = torch.finfo(torch.float16).max
    array: NDArray[np.generic] = on_cpu.clamp(-limit, limit).half().numpy()
    return array
