"""Compile frozen parts with OpenVINO, and use them only if faster and in agreement with torch.

Owns the compiled form (OpenVINO, float32 or bfloat16) and the choice between it and torch: a short
trial on first use, whose outcome and compiled file are cached in a folder of the user's. Knows
nothing of backbones or images. If OpenVINO does not support the part, is slower, or disagrees with
torch, the part runs in torch.
"""

import contextlib
import hashlib
import importlib
import json
import logging
import os
import platform
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.config.settings import find_cache_dir
from core.files.mapped_memory import release_pages
from core.files.whole import hash_file, write_text

logger = logging.getLogger(__name__)

Run = Callable[[Tensor], Tensor]
MIN_AGREEMENT = {"f32": 0.9999, "bf16": 0.999}  # cosine with torch in float32; not used below this
_N_TRIALS = 3
_OWN_FILE = re.compile(r"[0-9a-f]{24}(-(f32|bf16)(-\d+-\d+)?\.(xml|bin)|\.json|\.\d+-\d+)")
_KEEP_S = 60 * 86_400.0  # a compiled part unused for this long is deleted


@dataclass(frozen=True)
class Trial:
    """Measurements of the first use on this machine."""

    route: str  # "torch", or OpenVINO's precision: "f32", "bf16"
    milliseconds: dict[str, float]  # per route, one item
    agreement: dict[str, float]  # per precision, cosine with torch in float32
    sha256: dict[str, str] = field(default_factory=dict)  # per suffix, of the winner's files


def compile_part(
    part: nn.Module,
    example: Tensor,
    *,
    name: str,
    precisions: Sequence[str] = ("f32",),
    rival: Callable[[], nn.Module] | None = None,
) -> Run | None:
    """Compile a frozen part for this CPU, or return None if torch is the better choice.

    Args:
        part: float32, in eval mode, on the CPU. Its parameters must not change afterwards.
        example: one item (1, ...), distributed like the real input.
        name: of the parameters; part of the cache key, with the example's shape.
        precisions: "f32", "bf16": precisions OpenVINO may use; inputs and outputs stay float32.
        rival: builds what torch would run instead, if not the part itself.

    Returns:
        A function of any number of items (N, ...); concurrent calls are serialised.
    """
    kept = _Kept(_compute_key(name, tuple(example.shape), precisions))
    trial = kept.read_trial()
    if trial is not None and trial.route == "torch":
        kept.mark_used()
        return None
    if run := kept.read_run(trial):
        return run
    try:
        return _try(part, example, precisions, rival=rival, kept=kept)
    except (ImportError, RuntimeError, OSError, ValueError) as err:  # OpenVINO's are RuntimeErrors
        logger.warning("a part of the network is run by torch: %s", str(err)[:200])
        return None


def find_compiled(
    shape: Sequence[int], *, name: str, precisions: Sequence[str] = ("f32",)
) -> Run | None:
    """Find the part that ``compile_part`` cached for one item of this shape, or None."""
    kept = _Kept(_compute_key(name, shape, precisions))
    return kept.read_run(kept.read_trial())


@dataclass(frozen=True)
class _Kept:
    """The cached files of one part: the trial's outcome and the model that won."""

    key: str

    @property
    def _trial_file(self) -> Path:
        return find_cache_dir() / f"{self.key}.json"

    def find_model(self, precision: str) -> Path:
        """Path of the model of a precision; its .bin file is beside it."""
        return find_cache_dir() / f"{self.key}-{precision}.xml"

    def read_trial(self) -> Trial | None:
        """Read the trial's outcome; None if there was no trial."""
        try:
            return Trial(**json.loads(self._trial_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def read_run(self, trial: Trial | None) -> Run | None:
        """Load the part that won the trial; None if torch won, or its file is unusable."""
        if trial is None or trial.route == "torch" or not self.find_model(trial.route).is_file():
            return None
        if trial.sha256 and self.hash_model(trial.route) != trial.sha256:
            logger.warning("a compiled part has changed on the disk, so it is compiled anew")
            return None
        try:
            run = _OpenVinoRun(_read_model(self.find_model(trial.route)), trial.route)
        except (ImportError, RuntimeError, OSError, ValueError) as err:
            logger.warning("a compiled part cannot be read: %s", str(err)[:200])
            return None
        self.release()
        self.mark_used()
        return run

    def hash_model(self, precision: str) -> dict[str, str]:
        """Hash the files of a precision's model; empty if they cannot be read."""
        try:
            path = self.find_model(precision)
            return {suffix: hash_file(path.with_suffix(suffix)) for suffix in (".xml", ".bin")}
        except OSError:
            return {}

    def release(self) -> None:
        """Release the files' memory, because a compiled part has its own parameters."""
        for path in find_cache_dir().glob(f"{self.key}-*.bin"):
            release_pages(path)

    def mark_used(self) -> None:
        """Mark the files as used, so that they are not deleted as stale."""
        for path in find_cache_dir().glob(f"{self.key}*"):
            with contextlib.suppress(OSError):  # e.g. read-only home folder
                os.utime(path)

    def write_model(self, model: Any, precision: str) -> Any:
        """Save a model and return it as later starts will read it, or itself if that fails.

        For bf16 the file is stored as float16, half the size, which has more mantissa bits than
        bfloat16.
        """
        path = self.find_model(precision)
        unique = f"{self.key}-{precision}-{os.getpid()}-{threading.get_ident()}.xml"
        temporary = path.with_name(unique)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            halves = precision == "bf16"
            _load_openvino().save_model(model, temporary, compress_to_fp16=halves)
            os.replace(temporary.with_suffix(".bin"), path.with_suffix(".bin"))
            os.replace(temporary, path)
            return _read_model(path)
        except (OSError, RuntimeError) as err:  # e.g. read-only home folder or full disk
            logger.warning("a compiled part cannot be kept: %s", str(err)[:200])
            for left in (temporary, temporary.with_suffix(".bin")):
                with contextlib.suppress(OSError):
                    left.unlink()
            return model

    def write_trial(self, trial: Trial, precisions: Sequence[str]) -> None:
        """Save the outcome and delete the models that lost."""
        for precision in precisions:
            if precision != trial.route:
                for suffix in (".xml", ".bin"):
                    self.find_model(precision).with_suffix(suffix).unlink(missing_ok=True)
        if trial.route != "torch":
            trial = replace(trial, sha256=self.hash_model(trial.route))
        write_text(self._trial_file, json.dumps(vars(trial)), durable=False)
        _drop_unused()


def _drop_unused() -> None:
    """Delete files not used for a long time, e.g. of deleted models or older versions."""
    oldest = time.time() - _KEEP_S
    for path in find_cache_dir().iterdir():
        with contextlib.suppress(OSError):
            if _OWN_FILE.fullmatch(path.name) and path.stat().st_mtime < oldest:
                path.unlink()


def _try(
    part: nn.Module,
    example: Tensor,
    precisions: Sequence[str],
    *,
    rival: Callable[[], nn.Module] | None,
    kept: _Kept,
) -> Run | None:
    model = _convert(part, example)
    with torch.inference_mode():
        expected = part(example)
        runs, times, agreement = {}, {}, {}
        for precision in precisions:
            run = _OpenVinoRun(kept.write_model(model, precision), precision)
            runs[precision] = run
            times[precision] = _time(run, example)
            agreement[precision] = _compare(run(example), expected)
        times["torch"] = _time(rival() if rival else part, example)
    agreeing = [p for p in precisions if agreement[p] >= MIN_AGREEMENT[p]]
    route = min(("torch", *agreeing), key=times.__getitem__)
    trial = Trial(route, times, agreement)
    logger.info("trial of a frozen part: %s", trial)
    kept.release()
    with contextlib.suppress(OSError):  # read-only home folder: the trial is repeated next time
        kept.write_trial(trial, precisions)
    return runs.get(route)


def _compare(output: Tensor, expected: Tensor) -> float:
    """Cosine similarity of two outputs."""
    pair = (output.flatten().double(), expected.flatten().double())
    return float(nn.functional.cosine_similarity(*pair, dim=0))


def _load_openvino() -> Any:
    """Import OpenVINO with telemetry disabled, so that nothing leaves this machine."""
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    return importlib.import_module("openvino")


def _convert(part: nn.Module, example: Tensor) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns about shapes that are fixed here
        model = _load_openvino().convert_model(part, example_input=example)
    model.reshape(list(example.shape))
    return model


def _read_model(path: Path) -> Any:
    return _load_openvino().Core().read_model(path)


class _OpenVinoRun:
    """A compiled part. Items are processed one by one, in up to four parallel streams.

    A single item's activations fit into the core's cache; a batch's do not (measured: 4 to 5 times
    as fast as torch one by one, 3 times in a batch of four).
    """

    def __init__(self, model: Any, precision: str) -> None:
        openvino = _load_openvino()
        n_threads = torch.get_num_threads()
        n_streams = max(1, min(n_threads, 4))  # a typical batch is the four views of one image
        compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": n_threads,
                "NUM_STREAMS": n_streams,
                "INFERENCE_PRECISION_HINT": precision,
                "ENABLE_CPU_PINNING": False,
            },
        )
        self.precision = precision
        self._shape = tuple(compiled.output(0).shape)
        self._queue = openvino.AsyncInferQueue(compiled, n_streams)
        self._lock = threading.Lock()
        self._out: NDArray[np.float32] = np.empty(0, np.float32)
        self._queue.set_callback(self._keep)

    def __call__(self, batch: Tensor) -> Tensor:
        items = batch.detach().to(torch.float32).contiguous().numpy()
        with self._lock:  # members of an ensemble share a trunk but have separate locks
            self._out = np.empty((len(items), *self._shape[1:]), np.float32)
            for index in range(len(items)):
                self._queue.start_async([items[index : index + 1]], index, share_inputs=True)
            self._queue.wait_all()
            return torch.from_numpy(self._out)

    def _keep(self, request: Any, index: int) -> None:
        self._out[index] = request.get_output_tensor(0).data[0]  # OpenVINO thread: NumPy only


def _time(run: Run | nn.Module, example: Tensor) -> float:
    """Milliseconds per item, the best of a few runs."""
    run(example)
    times = []
    for _ in range(_N_TRIALS):
        began = time.perf_counter()
        run(example)
        times.append(time.perf_counter() - began)
    return min(times) * 1000.0


def _compute_key(name: str, shape: Sequence[int], precisions: Sequence[str]) -> str:
    """Hash what the outcome depends on: parameters, shape, machine, threads, versions."""
    parts = [
        name,
        *precisions,
        str(tuple(shape)),
        _name_cpu(),
        str(torch.get_num_threads()),
        torch.__version__,
        _find_version("openvino"),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _name_cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line
    return platform.processor() or platform.machine()
