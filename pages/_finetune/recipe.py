"""Fine-tune page: the recipe, its estimated cost, and the start."""

from pathlib import Path
from typing import Any

import streamlit as st

from core.config import OBJECTIVES, PRESETS, RECIPES, Settings, build_preset
from core.config.presets import build_config
from core.data.plan import Plan
from core.errors import ConfigError, CoreError
from core.files.names import write_path
from core.jobs import queue
from core.models.bundle import check_model_id
from core.training.ensemble import name_members
from pages import _shared as shared
from pages._finetune.data import SEEDS, read_findings
from pages._job import show_short_job
from pages._text import N_, _, describe, describe_job, plain

_PRESET_WORDS = {
    "offline": N_("offline: small, needs no network connection, runs on a CPU"),
    "compact": N_("compact: medium, for a laptop with a GPU"),
    "paper": N_("paper: the large model of the report, needs a large GPU"),
    "swin-effnetv2": N_("swin-effnetv2: system 2 of the report, large"),
    "convnextv2-beit": N_("convnextv2-beit: system 3 of the report, large"),
}
_OBJECTIVE_WORDS = {
    "triplet": N_("Triplet: nearest images vote (recommended)"),
    "metric-ensemble": N_("Metric ensemble: three votes in one model, slower"),
    "cross-entropy": N_("Cross-entropy: plain classifier, no vote"),
}
_RECIPE_WORDS = {
    "robust": N_("robust: more robust to images from other devices (recommended)"),
    "report": N_("report: training as in the report that this method comes from"),
}
_MAX_SEEDS = 5
_SIZES = (224, 288, 384, 448, 512, 640, 768)
_LARGEST_ADVISED = 512  # beyond it no gain was measured
# Fields of their own, or part of what the check above looked at.
_ELSEWHERE = ("train.seed", "train.epochs", "train.val_fraction", "objective.name")
_EXAMPLE = "train.adapter_lr=0.001\ntrain.tail_lr=0.0001\ntrain.n_views=6"


def choose_recipe(plan: Plan, audit: dict[str, Any]) -> dict[str, Any] | None:
    """The parameters of a train job; None while something in them is wrong."""
    st.markdown("#### " + _("Recipe"))
    name = st.text_input(
        _("Name of the new model"),
        key=shared.FT_NAME_KEY,
        max_chars=60,
        placeholder=_("letters, digits, dots, dashes"),
    )
    preset = st.selectbox(
        _("Preset"),
        sorted(PRESETS, key=lambda name: name != "offline"),  # the one that needs no hub
        format_func=lambda name: _(_PRESET_WORDS.get(name, name)),
        key=shared.keep_choice(shared.FT_PRESET_KEY),
        help=_("Which pretrained networks the model is built on, and their size."),
    )
    recipe = st.selectbox(
        _("Recipe"),
        RECIPES,
        format_func=lambda name: _(_RECIPE_WORDS[name]),
        key=shared.keep_choice(shared.FT_RECIPE_KEY),
    )
    is_ensemble = st.toggle(
        _("Train two models that vote together"),
        key=shared.FT_ENSEMBLE_KEY,
        help=_(
            "One with the triplet objective, one with the metric ensemble; the images are read "
            "only once. Usually the better choice, but training takes longer."
        ),
    )
    left, right = st.columns(2, gap="large")
    with left:
        objective = st.radio(
            _("Training objective"),
            list(OBJECTIVES),
            format_func=lambda name: _(_OBJECTIVE_WORDS.get(name, name)),
            disabled=is_ensemble,
            key=shared.keep_choice(shared.FT_OBJECTIVE_KEY),
        )
    with right:
        epochs, seeds = _choose_length(preset, recipe)
        resized = _choose_size(preset, audit["report"])
    more = _choose_more()
    overrides = [f"train.epochs={epochs}", *resized, *more]
    if weights := PRESETS[preset].non_commercial:
        st.warning(
            _(
                "The licence of the pretrained weights does not allow commercial use: {weights}."
            ).format(weights=weights),
            icon=":material/copyright:",
        )
    params = {
        "data": write_path(plan.root),
        "options": plan.options.to_json(),
        "preset": preset,
        "recipe": recipe,
        "objective": next(iter(OBJECTIVES)) if is_ensemble else objective,
        "is_ensemble": is_ensemble,
        "overrides": overrides,
        "cache_trunk": bool(st.session_state.get(shared.FT_CACHE_KEY, True)),
        "is_synthetic": ".demo-data" in plan.root.parts,
    }
    try:
        _check_overrides(more)
        build_config(params)
    except CoreError as error:
        st.error(describe(error), icon=":material/error:")
        return None
    return {**params, "name": name.strip(), "seeds": seeds}


def _choose_length(preset: str, recipe: str) -> tuple[int, list[int]]:
    epochs = st.number_input(
        _("Epochs (passes over all images)"),
        min_value=1,
        max_value=1000,
        value=build_preset(preset, recipe=recipe).train.epochs,
        key=f"{shared.FT_EPOCHS_KEY}_{preset}_{recipe}",
    )
    seeds = st.multiselect(
        _("Random seeds (one training run each)"),
        SEEDS,
        default=[SEEDS[0]],
        max_selections=_MAX_SEEDS,
        key=shared.FT_SEEDS_KEY,
        help=_(
            "The seed fixes all random choices, including which images are held out for "
            "validation. Several seeds show how much the results vary by chance; the runs follow"
            " one another."
        ),
    )
    return int(epochs), sorted(seeds)


def _choose_size(preset: str, report: dict[str, Any]) -> list[str]:
    """The setting where it is not the preset's own; says what of the images would be lost."""
    own = build_preset(preset).preprocess.input_size
    offered = sorted({own, *_SIZES})
    size: int = st.selectbox(
        _("Input size (side of the square network input, in pixels)"),
        offered,
        index=offered.index(own),
        key=f"{shared.FT_SIZE_KEY}_{preset}",
        help=_(
            "The preset uses {size}. A larger size can help when findings are small; doubling "
            "the side takes about four times as long."
        ).format(size=own),
    )
    width, height = (report[name][1] for name in ("width_range", "height_range"))
    larger = [s for s in _SIZES if size < s <= min(max(width, height), _LARGEST_ADVISED)]
    if larger:
        st.caption(
            _(
                "The images are {width} x {height} px (median): at {size} px, details only a few"
                " pixels wide are lost. {larger} px would take about {times} times as long."
            ).format(
                width=width,
                height=height,
                size=size,
                larger=larger[-1],
                times=f"{(larger[-1] / size) ** 2:.1f}",
            )
        )
    return [] if size == own else [f"preprocess.input_size={size}"]


def _check_overrides(lines: list[str]) -> None:
    for line in lines:
        key = line.partition("=")[0].strip()
        if key in _ELSEWHERE:
            raise ConfigError(
                f"{key} is not set here: seeds, epochs and objective have fields of their own, and "
                "the check above belongs to the usual validation split.",
                code="config.elsewhere",
                params={"key": key},
            )


def _choose_more() -> list[str]:
    with st.expander(_("More settings")):
        st.toggle(
            _("Cache trunk activations on disk (much faster)"), value=True,
            key=shared.FT_CACHE_KEY,
        )  # fmt: skip
        text = st.text_area(
            _("Other settings, one per line"),
            key=shared.FT_MORE_KEY,
            placeholder=_EXAMPLE,
            help=_("Same syntax as on the command line: section.key=value."),
        )
    return [line.strip() for line in text.splitlines() if line.strip()]


def _trial_params(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key not in ("name", "seeds")}


def show_estimate(params: dict[str, Any]) -> None:
    """Time, memory and disk on this machine, measured on request."""
    settings = Settings.from_env()
    st.markdown("#### " + _("Cost on this machine"))
    wanted = _trial_params(params)
    job = queue.find_latest(settings.checkpoints_dir, "trial", wanted)
    if job is not None and job.is_open:
        show_short_job(job)
        return
    if job is not None and job.status == "failed":
        st.error(
            describe_job(job),
            icon=":material/error:",
        )
    if job is None or job.status != "done":
        st.button(
            _("Measure"),
            icon=":material/speed:",
            on_click=_start_trial,
            args=(wanted, settings),
            key="finetune_measure",
            help=_("Runs a few images and training steps, usually in under a minute."),
        )
        return
    _show_costs(queue.read_result(settings.checkpoints_dir, job.job_id), len(params["seeds"]))


def _start_trial(params: dict[str, Any], settings: Settings) -> None:
    with shared.show_errors():
        queue.start("trial", params, title=Path(params["data"]).name, settings=settings)


def _show_costs(found: dict[str, Any], n_seeds: int) -> None:
    columns = st.columns(4)
    columns[0].metric(_("Time"), _say_minutes(found["total_s"] * max(1, n_seeds)))
    columns[1].metric(_("Memory"), _say_size(found["memory_bytes"]))
    columns[2].metric(_("GPU memory"), _say_gpu(found))
    columns[3].metric(_("Disk during training"), _say_size(found["disk_bytes"]))
    st.caption(
        _(
            "Measured on {device} for one run: start-up {start}, reading the images {read}, "
            "training {fit}, finishing {finish}. Other work on this machine slows it down."
        ).format(
            device=found["gpu_name"] or found["device"],
            start=_say_minutes(found["start_s"]),
            read=_say_minutes(found["trunk_s"]),
            fit=_say_minutes(found["fit_s"]),
            finish=_say_minutes(found["finish_s"]),
        )
    )
    if not found["has_disk"]:
        st.error(
            _("Only {free} of disk space is free: training would stop.").format(
                free=_say_size(found["disk_free_bytes"])
            ),
            icon=":material/hard_drive:",
        )
    if not found["has_memory"]:
        st.warning(
            _("Only {free} of memory is free now.").format(
                free=_say_size(found["memory_free_bytes"])
            ),
            icon=":material/memory:",
        )

    if not found["has_gpu_memory"]:
        st.warning(
            _("Only {free} of GPU memory is free now.").format(
                free=_say_size(found["gpu_free_bytes"])
            ),
            icon=":material/memory:",
        )


def _say_gpu(found: dict[str, Any]) -> str:
    if found["gpu_name"]:
        return _say_size(found["gpu_bytes"])
    return _("shared with system memory") if found["device"] == "mps" else _("no GPU")


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
    obstacle = _find_obstacle(params, audit)
    n = len(params["seeds"])
    if st.button(
        _("Start training") if n < 2 else _("Start training {n} models").format(n=n),
        type="primary",
        icon=":material/model_training:",
        disabled=bool(obstacle),
        key="finetune_start",
    ):
        _start_training(params)
        st.rerun()
    if obstacle:
        st.caption(obstacle)


def _find_obstacle(params: dict[str, Any], audit: dict[str, Any]) -> str:
    """Why training cannot start, in a sentence; empty when it can."""
    if any(f.severity == "blocker" for f in read_findings(audit, params["seeds"])):
        return _("See the data check for the reason why training cannot start.")
    if not params["seeds"]:
        return _("Choose at least one seed.")
    if not params["name"]:
        return _("Name the new model: letters, digits, dots and dashes.")
    directory = Settings.from_env().checkpoints_dir
    try:
        wanted = [check_model_id(name) for name in _names(params).values()]
        if params["is_ensemble"]:
            wanted += [member for name in wanted for member in name_members(name)]
    except CoreError:
        return _("Name the new model: letters, digits, dots and dashes.")
    taken = next((name for name in wanted if (directory / name).exists()), None)
    if taken is not None:
        return _("A model named “{model_id}” already exists. Choose another name.").format(
            model_id=plain(taken)
        )
    return ""


def _names(params: dict[str, Any]) -> dict[int, str]:
    """Seed -> the name of its model."""
    name, seeds = params["name"], params["seeds"]
    return {seed: name if len(seeds) == 1 else f"{name}-s{seed}" for seed in seeds}


def _start_training(params: dict[str, Any]) -> None:
    settings = Settings.from_env()
    for index, (seed, name) in enumerate(_names(params).items()):
        wanted = {**_trial_params(params), "name": name, "seed": seed}
        job = queue.start("train", wanted, title=name, settings=settings)
        if index == 0:
            st.session_state[shared.FT_JOB_KEY] = job.job_id
