"""Models page: the list, the model card, activation, roll-back, deletion."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from core.assessment import activation_gate
from core.assessment.activation_gate import Verdict
from core.config import Settings
from core.errors import CoreError
from core.models import marks, registry
from core.models.registry import ModelSummary
from pages import _shared as shared
from pages._text import N_, _, class_label, describe, language, moment, ngettext, plain

_VERDICTS = {
    "first": N_("No other model is in use."),
    "same": N_("This model is in use."),
    "passed": N_(
        "Gate passed: on the same {n} images, accuracy changes by {accuracy} and AUROC by "
        "{auroc}. Each may drop by at most {limit}."
    ),
    "worse": N_(
        "Gate not passed: on the same {n} images, accuracy changes by {accuracy} and AUROC by "
        "{auroc}. Each may drop by at most {limit}."
    ),
    "harmed": N_("Gate not passed: worse in a subgroup ({harmed})."),
    "incomparable": N_(
        "Gate not passed: no measurement on the same images as the model in use ({current}). "
        "Compare the two on one test set first."
    ),
}
_EVIDENCE = {
    "comparison": N_("Measured image by image on test images that neither model had seen."),
    "validation": N_("Measured on validation images held out by both models, not on a test set."),
}
_SET_ASIDE = {
    "split": N_("The saved comparison does not count: it was not made on test images."),
    "known": N_(
        "The saved comparison does not count: one of the models was trained or validated on some"
        " of its images."
    ),
    "gallery": N_("The saved comparison does not count: a gallery has been corrected since."),
    "older": N_(
        "The saved comparison does not count: it does not record whether the models had seen its"
        " images."
    ),
}
_ACTIONS = {
    "activate": N_("activated"),
    "override": N_("activated despite the gate"),
    "roll-back": N_("rolled back"),
}


def _directory() -> Path:
    return Settings.from_env().checkpoints_dir


def show_list(models: Sequence[ModelSummary]) -> None:
    """All models with their figures."""
    active = registry.active_model_id(_directory())
    rows = [_row(model, is_active=model.model_id == active) for model in models]
    # Not st.dataframe: its cells do not wrap, so on a narrow screen columns are out of sight.
    st.table(pd.DataFrame(rows), hide_index=True, alt=_("Table of all models with their figures"))
    st.caption(
        _(
            "★ marks the model in use. Accuracy and AUROC are measured on each model's own "
            "validation images."
        )
    )


def show_foreign() -> None:
    """Name what lies beside the models and is none; nothing here touches it."""
    if names := marks.list_foreign(_directory()):
        st.caption(_("Not a model, left alone: {names}").format(names=", ".join(map(plain, names))))


def _row(model: ModelSummary, *, is_active: bool) -> dict[str, str]:
    classes = " / ".join(class_label(name) for name in model.class_names)
    images = ngettext("{n} image", "{n} images", model.n_gallery).format(n=model.n_gallery)
    trained_on = ", ".join([images, classes, model.data_id]) if model.n_gallery else "–"
    return {
        _("Model"): ("★ " if is_active else "") + f"**{plain(model.model_id)}**",
        _("Accuracy"): _say_figure(model.val_accuracy),
        _("AUROC"): _say_figure(model.val_auroc),
        _("Recipe"): plain(model.problem or _recipe(model)),
        _("Training data"): plain(trained_on),
        _("Pretrained weights"): plain(model.weight_source) or "–",
        _("Created (UTC), size"): f"{plain(moment(model.created))}, {_say_size(model.n_bytes)}",
    }


def _say_figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _say_size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.0f} kB"


def _recipe(model: ModelSummary) -> str:
    if model.members:
        return _("ensemble of {members}").format(members=", ".join(model.members))
    return _("{preset}, {recipe}, {objective}, seed {seed}").format(
        preset=model.preset, recipe=model.recipe, objective=model.objective, seed=model.seed
    )


def show_one(models: Sequence[ModelSummary]) -> None:
    """One model: card, use, deletion; then the history."""
    ids = [model.model_id for model in models]
    if st.session_state.get(shared.MODELS_ONE_KEY) not in ids:
        st.session_state.pop(shared.MODELS_ONE_KEY, None)
    active = registry.active_model_id(_directory())
    chosen = st.selectbox(
        _("Selected model"),
        ids,
        index=ids.index(active) if active in ids else 0,
        key=shared.MODELS_ONE_KEY,
    )
    summary = models[ids.index(chosen)]
    left, right = st.columns(2, gap="large")
    with left:
        _show_card(summary)
    with right:
        _show_use(summary, active)
    _show_history()


def _show_card(summary: ModelSummary) -> None:
    if summary.problem:
        st.error(plain(summary.problem), icon=":material/error:")
        return
    path = _directory() / summary.model_id / "card.md"
    with st.container(border=True):
        if language() != "en":
            st.caption(_("The model card is in English only."))
        st.markdown(_mark_up(path.read_text(encoding="utf-8")))
    if not summary.identity:
        st.caption(
            _(
                "Made by an earlier version: changes in its gallery and calibration would not be "
                "noticed. Export and import it once to seal it."
            )
        )
    if st.button(_("Delete"), icon=":material/delete:", key="models_delete"):
        st.dialog(_("Please confirm"))(_confirm_deletion)(summary.model_id)


def _mark_up(card: str) -> str:
    """A card's headings and lists; all else in it is foreign text, perhaps of an imported file."""
    lines = []
    for line in card.splitlines():
        start = re.match(r"#+ |- |  (?=\S)|", line)
        mark = start[0] if start else ""
        text = re.sub(r"\\([^\w\s])", r"\1", line[len(mark) :])
        lines.append(("#### " if mark.startswith("#") else mark) + plain(text))
    return "\n".join(lines)


def _confirm_deletion(model_id: str) -> None:
    st.markdown(_("Permanently delete **{name}**?").format(name=plain(model_id)))
    st.markdown(_("Export it first if you may need it again."))
    is_needed = False
    try:
        registry.check_deletable(_directory(), model_id)
    except CoreError as error:
        is_needed = True
        st.error(describe(error), icon=":material/block:")
    if st.button(
        _("Delete permanently"), type="primary", key="models_delete_yes", disabled=is_needed
    ):
        with shared.show_errors():
            registry.delete_model(_directory(), model_id)
        st.rerun()


def _show_use(summary: ModelSummary, active: str | None) -> None:
    st.markdown("#### " + _("Activation"))
    if summary.problem:
        st.caption(_("This model cannot be loaded, so it cannot be used."))
        return
    limit = st.number_input(
        _("Maximum drop in accuracy and AUROC"),
        min_value=0.0,
        max_value=0.5,
        value=activation_gate.LIMIT,
        step=0.01,
        key=shared.MODELS_LIMIT_KEY,
        width=260,
    )
    verdict = activation_gate.check_gate(_directory(), summary.model_id, limit=limit)
    _show_verdict(verdict)
    if summary.model_id != active:
        reason = ""
        if not verdict.passed:
            reason = st.text_area(
                _("Why should it be activated anyway? Your reason is recorded."),
                key=shared.MODELS_REASON_KEY,
            )
        st.button(
            _("Activate this model") if verdict.passed else _("Activate despite the gate"),
            type="primary" if verdict.passed else "secondary",
            icon=":material/check_circle:",
            disabled=not verdict.passed and len(reason.strip()) < activation_gate.MIN_REASON,
            on_click=_activate,
            args=(summary.model_id, reason, limit),
            key="models_activate",
        )
    previous = activation_gate.find_previous(_directory())
    if previous is not None:
        st.button(
            _("Roll back to {name}").format(name=previous),
            icon=":material/undo:",
            on_click=_roll_back,
            key="models_roll_back",
        )


def _show_verdict(verdict: Verdict) -> None:
    words = _(_VERDICTS[verdict.code]).format(
        n=verdict.n,
        accuracy=f"{verdict.accuracy_change:+.3f}",
        auroc=f"{verdict.auroc_change:+.3f}",
        limit=f"{verdict.limit:.3f}",
        harmed=plain(verdict.harmed),
        current=plain(verdict.current),
    )
    if verdict.evidence:
        words += " " + _(_EVIDENCE[verdict.evidence])
    if verdict.set_aside:
        words += " " + _(_SET_ASIDE[verdict.set_aside])
    if verdict.passed:
        st.success(words, icon=":material/check:")
    else:
        st.warning(words, icon=":material/front_hand:")


def _activate(model_id: str, reason: str, limit: float) -> None:
    with shared.show_errors():
        activation_gate.activate(_directory(), model_id, reason=reason, limit=limit)
    st.session_state[shared.MODEL_KEY] = model_id
    st.session_state.pop(shared.MODELS_REASON_KEY, None)


def _roll_back() -> None:
    with shared.show_errors():
        entry = activation_gate.roll_back(_directory())
    st.session_state[shared.MODEL_KEY] = entry.model_id
    st.session_state[shared.MODELS_ONE_KEY] = entry.model_id


def _show_history() -> None:
    past = activation_gate.read_history(_directory())
    if not past:
        return
    st.markdown("#### " + _("History"))
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "time": moment(entry.time),
                    "what": _(_ACTIONS[entry.action]),
                    "model": entry.model_id,
                    "previous": entry.previous,
                    "reason": entry.reason,
                    "gate": entry.message,
                }
                for entry in reversed(past)
            ]
        ),
        hide_index=True,
        alt=_("Table of all activations"),
        column_config={
            "time": st.column_config.TextColumn(_("Time (UTC)"), width=130),
            "what": st.column_config.TextColumn(_("Action"), width=150),
            "model": st.column_config.TextColumn(_("Model"), width=130),
            "previous": st.column_config.TextColumn(_("Before"), width=130),
            "reason": st.column_config.TextColumn(_("Reason"), width=220),
            "gate": st.column_config.TextColumn(_("Gate result"), width="large"),
        },
    )
