"""A frozen part of a network, run the fastest way that this machine has and that agrees with torch.

Owns the compiled form (OpenVINO, float32 or bfloat16) and the choice between it and torch: a short
trial on first use, whose outcome and compiled file are kept in a folder of the user's. Knows
nothing of backbones or images. Where OpenVINO cannot take the part, is slower, or disagrees with
torch, torch runs it.
"""

import contextlib
import hashlib
import importlib
import json
import logging
import os
import platform
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Run = Callable[[Tensor], Tensor]
MIN_AGREEMENT = {"f32": 0.9999, "bf16": 0.999}  # cosine with torch in float32; below: not used
_N_TRIALS = 3


@dataclass(frozen=True)
class Trial:
    """What the first use on this machine measured."""

    route: str  # "torch", or the precision that OpenVINO computes in: "f32", "bf16"
    milliseconds: dict[str, float]  # per route, one item
    agreement: dict[str, float]  # per precision, cosine with torch in float32


def find_cache_dir() -> Path:
    """The folder of compiled parts: NEIGHBORDX_CACHE, else the user's own cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("NEIGHBORDX_CACHE") or Path(base) / "neighbordx")


def compile_part(
    part: nn.Module,
    example: Tensor,
    *,
    name: str,
    precisions: Sequence[str] = ("f32",),
    rival: Callable[[], nn.Module] | None = None,
) -> Run | None:
    """Make a frozen part fast on this CPU, or return None where torch is the better choice.

    Args:
        part: float32, in eval mode, on the CPU. Its parameters must not change afterwards.
        example: one item (1, ...), drawn like the real input.
        name: of the parameters; with the example's shape it names the compiled file.
        precisions: "f32", "bf16": what OpenVINO may compute in; inputs and outputs stay float32.
        rival: makes what torch would run instead, where that is not the part itself.

    Returns:
        A function of any number of items (N, ...); callers wait for each other.
    """
    files = _name_files(name, tuple(example.shape), precisions)
    trial = _read_trial(files.trial)
    if trial is not None and trial.route == "torch":
        return None
    try:
        return _read_run(files, trial) or _try(
            part, example, precisions, rival=rival() if rival else part, files=files
        )
    except (ImportError, RuntimeError, OSError, ValueError) as err:  # OpenVINO's are RuntimeErrors
        logger.warning("a part of the network is run by torch: %s", str(err)[:200])
        return None


def find_compiled(
    shape: Sequence[int], *, name: str, precisions: Sequence[str] = ("f32",)
) -> Run | None:
    """What an earlier ``compile_part`` kept for one item of this shape; None where it kept none."""
    files = _name_files(name, shape, precisions)
    try:
        return _read_run(files, _read_trial(files.trial))
    except (ImportError, RuntimeError, OSError, ValueError) as err:
        logger.warning("a compiled part cannot be read: %s", str(err)[:200])
        return None


@dataclass(frozen=True)
class _Files:
    """Where a compiled part and the outcome of its trial are kept."""

    model: Path
    trial: Path


def _name_files(name: str, shape: Sequence[int], precisions: Sequence[str]) -> _Files:
    key = _compute_key(name, shape, precisions)
    folder = find_cache_dir()
    return _Files(folder / f"{key}.xml", folder / f"{key}.json")


def _read_run(files: _Files, trial: Trial | None) -> Run | None:
    if trial is None or trial.route == "torch" or not files.model.is_file():
        return None
    return _OpenVinoRun(_load_openvino().Core().read_model(files.model), trial.route)


def _try(
    part: nn.Module,
    example: Tensor,
    precisions: Sequence[str],
    *,
    rival: nn.Module,
    files: _Files,
) -> Run | None:
    model = _convert(part, example)
    runs = {precision: _OpenVinoRun(model, precision) for precision in precisions}
    with torch.inference_mode():
        expected = part(example)
        times = {"torch": _time(rival, example)}
        agreement = {}
        for precision, run in runs.items():
            times[precision] = _time(run, example)
            agreement[precision] = _compare(run(example), expected)
    agreeing = [p for p in precisions if agreement[p] >= MIN_AGREEMENT[p]]
    route = min(("torch", *agreeing), key=times.__getitem__)
    trial = Trial(route, times, agreement)
    logger.info("trial of a frozen part: %s", trial)
    with contextlib.suppress(OSError):  # a read-only home: the trial is repeated next time
        _save(model, trial, files)
    return runs.get(route)


def _compare(output: Tensor, expected: Tensor) -> float:
    """Cosine of two outputs."""
    pair = (output.flatten().double(), expected.flatten().double())
    return float(nn.functional.cosine_similarity(*pair, dim=0))


def _load_openvino() -> Any:
    """Import OpenVINO without its usage reports: nothing leaves this machine."""
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    return importlib.import_module("openvino")


def _convert(part: nn.Module, example: Tensor) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's, about shapes that are fixed here
        model = _load_openvino().convert_model(part, example_input=example)
    model.reshape(list(example.shape))
    return model


def _save(model: Any, trial: Trial, files: _Files) -> None:
    files.model.parent.mkdir(parents=True, exist_ok=True)
    if trial.route != "torch":
        stem = files.model.with_name(f"{files.model.stem}-{os.getpid()}.xml")
        # Half the file for half the precision: float16 keeps more digits than bfloat16 computes in.
        _load_openvino().save_model(model, stem, compress_to_fp16=trial.route == "bf16")
        os.replace(stem.with_suffix(".bin"), files.model.with_suffix(".bin"))
        os.replace(stem, files.model)
    temporary = files.trial.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(vars(trial)), encoding="utf-8")
    os.replace(temporary, files.trial)


def _read_trial(path: Path) -> Trial | None:
    try:
        return Trial(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class _OpenVinoRun:
    """A compiled part. Items go one by one, as many at a time as there are threads.

    One item keeps its activations in the core's own cache; a batch does not (measured: 4 to 5
    times as fast as torch by items, 3 times by a batch of four).
    """

    def __init__(self, model: Any, precision: str) -> None:
        openvino = _load_openvino()
        n_threads = torch.get_num_threads()
        n_streams = max(1, min(n_threads, 4))  # four views of one image are the usual batch
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
        with self._lock:  # members of an ensemble share a trunk, and each has a lock of its own
            self._out = np.empty((len(items), *self._shape[1:]), np.float32)
            for index in range(len(items)):
                self._queue.start_async([items[index : index + 1]], index, share_inputs=True)
            self._queue.wait_all()
            return torch.from_numpy(self._out)

    def _keep(self, request: Any, index: int) -> None:
        self._out[index] = request.get_output_tensor(0).data[0]  # NumPy: the thread is OpenVINO's


def _time(run: Run | nn.Module, example: Tensor) -> float:
    """Milliseconds of one item, the best of a few."""
    run(example)
    times = []
    for _ in range(_N_TRIALS):
        began = time.perf_counter()
        run(example)
        times.append(time.perf_counter() - began)
    return min(times) * 1000.0


def _compute_key(name: str, shape: Sequence[int], precisions: Sequence[str]) -> str:
    """What the outcome depends on: parameters, shape, machine, threads, versions."""
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
