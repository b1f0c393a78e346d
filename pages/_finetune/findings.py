"""Fine-tune page: the findings of the data check, translated, with pictures.

The English sentences are those of ``core.data.readiness``; a test compares them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from core.data.readiness import FEW, Finding
from pages._text import N_, _, class_label, ngettext, plain

SPLITS = {"train": N_("training"), "val": N_("validation"), "test": N_("test")}
_SENTENCES: dict[str, Callable[[int], str]] = {
    "too_few": lambda n: ngettext(
        "Class “{class_name}” has {n} readable {split} image; {needed} are needed.",
        "Class “{class_name}” has {n} readable {split} images; {needed} are needed.",
        n,
    ),
    "few": lambda n: ngettext(
        "Class “{class_name}” has only {n} {split} image: figures will be rough.",
        "Class “{class_name}” has only {n} {split} images: figures will be rough.",
        n,
    ),
    "unbalanced": lambda _n: _("The classes of the {split} images are unbalanced: {a} to {b}."),
    "no_test": lambda _n: _("There are no test images: figures will be those of validation only."),
    "exact_labels": lambda n: ngettext(
        "{n} group of identical images carries different labels: at most one of them is right.",
        "{n} groups of identical images carry different labels: at most one of them is right.",
        n,
    ),
    "near_labels": lambda n: ngettext(
        "{n} group of nearly identical images carries different labels: look at them.",
        "{n} groups of nearly identical images carry different labels: look at them.",
        n,
    ),
    "exact_leak": lambda n: ngettext(
        "{n} group of identical images lies in more than one split: figures will be too good.",
        "{n} groups of identical images lie in more than one split: figures will be too good.",
        n,
    ),
    "near_leak": lambda n: ngettext(
        "{n} group of nearly identical images lies in more than one split: figures will be too "
        "good.",
        "{n} groups of nearly identical images lie in more than one split: figures will be too "
        "good.",
        n,
    ),
    "exact_repeats": lambda n: ngettext(
        "{n} group of identical images.", "{n} groups of identical images.", n
    ),
    "near_repeats": lambda n: ngettext(
        "{n} group of nearly identical images.", "{n} groups of nearly identical images.", n
    ),
    "unreadable": lambda n: ngettext(
        "{n} file cannot be read and will be left out: {key}: {reason}",
        "{n} files cannot be read and will be left out, first {key}: {reason}",
        n,
    ),
    "patients": lambda n: ngettext(
        "{n} patient name occurs in more than one split, {name}: if it is the same patient, "
        "figures will be too good.",
        "{n} patient names occur in more than one split, first {name}: if they are the same "
        "patients, figures will be too good.",
        n,
    ),
}
_N_GROUPS = 6
_PICTURE_PX = 104


def say(finding: Finding, *, clean: Callable[[str], str] = plain) -> str:
    """A finding in the session's language, foreign names made safe for Markdown."""
    params: dict[str, Any] = {key: clean(str(value)) for key, value in finding.params.items()}
    if "split" in params:
        params["split"] = _(SPLITS[str(finding.params["split"])])
    if "class_name" in params:
        params["class_name"] = clean(class_label(str(finding.params["class_name"])))
    template = _SENTENCES[finding.code](int(finding.params.get("n", 0)))
    return template.format(**params)


def show_findings(findings: Sequence[Finding], result: dict[str, Any], folder: Path) -> None:
    """One box of what stops training, one of what to know, then the images they are about."""
    blockers = [f for f in findings if f.severity == "blocker"]
    warnings = [f for f in findings if f.severity == "warning"]
    if blockers:
        st.error(
            _("**Training cannot start.**") + _list([say(finding) for finding in blockers]),
            icon=":material/block:",
        )
    if warnings:
        st.warning(
            _("**Check before you start:**") + _list(_say_warnings(warnings)),
            icon=":material/warning:",
        )
    if not findings:
        st.success(_("Nothing suspicious was found."), icon=":material/check:")
    pictured = [f for f in warnings if any(key in result["pictures"] for g in f.keys for key in g)]
    if pictured:
        with st.expander(_("Review these images"), icon=":material/image_search:"):
            for finding in pictured:
                _show_groups(finding, result, folder)


def _list(sentences: Sequence[str]) -> str:
    return "\n\n" + "\n".join(f"- {sentence}" for sentence in sentences)


def _say_warnings(warnings: Sequence[Finding]) -> list[str]:
    """A sentence each, but all the small classes in one."""
    few = [f for f in warnings if f.code == "few"]
    said = [say(f) for f in warnings if f not in few]
    if len(few) < 2:
        return [*(say(f) for f in few), *said]
    places = [
        _("{n} {split} images of “{class_name}”").format(
            n=f.params["n"],
            split=_(SPLITS[str(f.params["split"])]),
            class_name=plain(class_label(str(f.params["class_name"]))),
        )
        for f in few
    ]
    sentence = _(
        "Fewer than {limit} images in some groups, so these figures will be imprecise: {places}."
    )
    return [sentence.format(limit=FEW, places="; ".join(places)), *said]


def _show_groups(finding: Finding, result: dict[str, Any], folder: Path) -> None:
    st.markdown(say(finding))
    for group in finding.keys[:_N_GROUPS]:
        show_pictures(group, result, folder, with_label=True)
    n_more = len(finding.keys) - _N_GROUPS
    if n_more > 0:
        st.caption(ngettext("{n} more group", "{n} more groups", n_more).format(n=n_more))


def show_pictures(
    keys: Sequence[str], result: dict[str, Any], folder: Path, *, with_label: bool
) -> None:
    """At most six of the audit's pictures side by side, in as many rows as the window needs."""
    shown = [key for key in keys if key in result["pictures"]][:6]
    with st.container(horizontal=True):
        for key in shown:
            with st.container(width=_PICTURE_PX):
                st.image(
                    str(folder / result["pictures"][key]),
                    width=_PICTURE_PX,
                    alt=_("Image {name}").format(name=key),
                )
                if with_label:
                    split, label = result["labels"][key]
                    st.caption(
                        f"{plain(class_label(label))}, {_(SPLITS[split])}  \n"
                        f"{plain(key.rsplit('/', 1)[-1])}"
                    )
