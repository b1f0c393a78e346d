"""Fine-tune page, second part: the recipe, what it will cost here, and the start."""

import re
from pathlib import Path
from typing import Any

import streamlit as st

from core import jobs
from core.bundle import check_model_id
from core.config import OBJECTIVES, PRESETS, Settings, build_preset
from core.errors import CoreError
from core.jobs.work import build_config
from pages import _shared as shared
from pages._jobs_view import show_short_job
from pages._text import N_, _, describe, describe_error, plain

_PRESET_WORDS = {
    "offline": N_("offline: small, needs no network, runs on a CPU"),
    "compact": N_("compact: medium, for a laptop with a graphics card"),
    "paper": N_("paper: the report's large model, needs a large graphics card"),
    "swin-effnetv2": N_("swin-effnetv2: the report's system 2, large"),
    "convnextv2-beit": N_("convnextv2-beit: the report's system 3, large"),
}
_OBJECTIVE_WORDS = {
    "triplet": N_("Triplet: nearest images vote (recommended)"),
    "metric-ensemble": N_("Metric ensemble: three votes in one model, slower"),
    "cross-entropy": N_("Cross-entropy: a plain classifier, no vote"),
}
_NON_COMMERCIAL = {"convnextv2-beit"}
_MAX_SEEDS = 5
_ORDER = ("offline", *(name for name in PRESETS if name != "offline"))
_EXAMPLE = "train.adapter_lr=0.001\ntrain.tail_lr=0.0001\ntrain.n_views=6"


def choose_recipe(data: Path, audit: dict[str, Any]) -> dict[str, Any] | None:
    """The parameters of a train job; None while something in them is wrong."""
    st.markdown("#### " + _("Recipe"))
    left, right = st.columns(2, gap="large")
    with left:
        preset = st.selectbox(
            _("Preset"),
            _ORDER,
            format_func=lambda name: _(_PRESET_WORDS[name]),
            key=shared.FT_PRESET_KEY,
        )
        objective = st.radio(
            _("What it is trained for"),
            list(OBJECTIVES),
            format_func=lambda name: _(_OBJECTIVE_WORDS[name]),
            key=shared.FT_OBJECTIVE_KEY,
        )
    with right:
        name = st.text_input(
            _("Name of the new model"),
            key=shared.FT_NAME_KEY,
            max_chars=60,
            placeholder=_("letters, digits, dots, dashes"),
        )
        epochs = st.number_input(
            _("Epochs: how often every image is shown"),
            min_value=1,
            max_value=1000,
            value=build_preset(preset).train.epochs,
            key=f"{shared.FT_EPOCHS_KEY}_{preset}",
        )
        seeds = st.number_input(
            _("Models to train, each with another random seed"),
            min_value=1,
            max_value=_MAX_SEEDS,
            value=1,
            key=shared.FT_SEEDS_KEY,
            help=_("Their figures tell how much is luck. They run one after another."),
        )
    if preset in _NON_COMMERCIAL:
        st.warning(
            _("The pretrained weights of ConvNeXtV2 are CC BY-NC 4.0: no commercial use."),
            icon=":material/copyright:",
        )
    overrides = [f"train.epochs={int(epochs)}", *_choose_more()]
    params = {
        "data": str(data.resolve()),
        "disease_class": audit["disease_class"],
        "preset": preset,
        "objective": objective,
        "overrides": overrides,
        "cache_trunk": bool(st.session_state.get(shared.FT_CACHE_KEY, True)),
        "is_synthetic": ".demo-data" in data.parts,
    }
    try:
        build_config(params)
    except CoreError as error:
        st.error(plain(describe(error)), icon=":material/error:")
        return None
    return {**params, "name": name.strip(), "n_seeds": int(seeds)}


def _choose_more() -> list[str]:
    with st.expander(_("More settings")):
        st.toggle(
            _("Keep intermediate results on disk (much faster)"), value=True,
            key=shared.FT_CACHE_KEY,
        )  # fmt: skip
        text = st.text_area(
            _("Other settings, one per line"),
            key=shared.FT_MORE_KEY,
            placeholder=_EXAMPLE,
            help=_("As on the command line: section.key=value."),
        )
    return [line.strip() for line in text.splitlines() if line.strip()]


def _trial_params(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key not in ("name", "n_seeds")}


def show_estimate(params: dict[str, Any]) -> None:
    """Time, memory and disk on this machine, measured on request."""
    settings = Settings.from_env()
    st.markdown("#### " + _("What it will take on this machine"))
    wanted = _trial_params(params)
    job = jobs.find_latest(settings.checkpoints_dir, "trial", wanted)
    if job is not None and job.is_open:
        show_short_job(job)
        return
    if job is not None and job.status == "failed":
        st.error(
            plain(describe_error(job.error_code, job.error, job.error_params)),
            icon=":material/error:",
        )
    if job is None or job.status != "done":
        st.button(
            _("Measure"),
            icon=":material/speed:",
            on_click=_start_trial,
            args=(wanted, settings),
            key="finetune_measure",
            help=_("Runs a few images and steps for real, usually under a minute."),
        )
        return
    _show_costs(jobs.read_result(settings.checkpoints_dir, job.job_id), params["n_seeds"])


def _start_trial(params: dict[str, Any], settings: Settings) -> None:
    with shared.show_errors():
        jobs.start("trial", params, title=Path(params["data"]).name, settings=settings)


def _show_costs(found: dict[str, Any], n_seeds: int) -> None:
    columns = st.columns(3)
    columns[0].metric(_("Time"), _say_minutes(found["total_s"] * n_seeds))
    columns[1].metric(_("Memory"), _say_size(found["memory_bytes"]))
    columns[2].metric(_("Disk, while it trains"), _say_size(found["disk_bytes"]))
    st.caption(
        _(
            "Measured here on {device}: reading the images {read}, training {fit}, finishing "
            "{finish}. Other work on this machine makes it slower."
        ).format(
            device=found["device"],
            read=_say_minutes(found["trunk_s"]),
            fit=_say_minutes(found["fit_s"]),
            finish=_say_minutes(found["finish_s"]),
        )
    )
    if not found["has_disk"]:
        st.error(
            _("The disk has only {free} free: training would stop.").format(
                free=_say_size(found["disk_free_bytes"])
            ),
            icon=":material/hard_drive:",
        )
    if not found["has_memory"]:
        st.warning(
            _("Only {free} of memory are free now.").format(
                free=_say_size(found["memory_free_bytes"])
            ),
            icon=":material/memory:",
        )


def _say_minutes(seconds: float) -> str:
    if seconds < 90:
        return _("{n} s").format(n=max(1, round(seconds)))
    if seconds < 5400:
        return _("{n} min").format(n=round(seconds / 60))
    return _("{n} h").format(n=f"{seconds / 3600:.1f}")


def _say_size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def show_start(params: dict[str, Any], audit: dict[str, Any]) -> None:
    """The button; says why it cannot be pressed."""
    is_blocked = any(f["severity"] == "blocker" for f in audit["findings"])
    has_name = bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", params["name"]))
    n = params["n_seeds"]
    if st.button(
        _("Start training") if n == 1 else _("Start training {n} models").format(n=n),
        type="primary",
        icon=":material/model_training:",
        disabled=is_blocked or not has_name,
        key="finetune_start",
    ):
        _start_training(params)
        st.rerun()
    if is_blocked:
        st.caption(_("The check of the data says why training cannot start."))
    elif not has_name:
        st.caption(_("Give the new model a name: letters, digits, dots, dashes."))


def _start_training(params: dict[str, Any]) -> None:
    settings = Settings.from_env()
    for seed in range(params["n_seeds"]):
        name = params["name"] if params["n_seeds"] == 1 else f"{params['name']}-s{seed}"
        wanted = {**_trial_params(params), "name": check_model_id(name), "seed": seed}
        job = jobs.start("train", wanted, title=name, settings=settings)
        if seed == 0:
            st.session_state[shared.FT_JOB_KEY] = job.job_id
