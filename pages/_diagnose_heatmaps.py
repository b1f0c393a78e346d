"""Diagnose page: the heatmaps of one case, for either class, and what they are worth.

The pictures come first; the test on this image takes seconds and fills its place afterwards.
"""

import streamlit as st

from core import second_look
from core.diagnosis import Diagnosis
from core.ensemble import Model
from core.explain import outline, overlay, resize_heatmap
from core.second_look import MapScrutiny, Scrutiny
from pages import _shared as shared
from pages._text import _, class_label, percent, plain

_SETTINGS_WIDTH = 320


def show_heatmaps(model: Model, diagnosis: Diagnosis) -> None:
    """One overlay per backbone, on the geometry of the image as displayed."""
    if not diagnosis.maps or diagnosis.pixels is None:
        return
    st.markdown(
        "#### " + _("Which part of the image speaks for each class"),
        help=_(
            "Grad-CAM of the vote: bright areas pulled the answer towards this class. It shows "
            "where the model looked, not whether it is right, and it does not outline a lesion."
        ),
    )
    class_name = _choose_class(model, diagnosis)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        opacity = st.slider(
            _("Heatmap opacity"),
            0,
            100,
            60,
            step=5,
            format="%d %%",
            key=shared.OPACITY_KEY,
            width=_SETTINGS_WIDTH,
        )
        has_line = st.toggle(
            _("Contour at half the peak"),
            key=shared.CONTOUR_KEY,
            help=_("A line around the area where the heatmap is above half of its highest value."),
        )
    places = _draw(diagnosis, class_name, opacity=opacity / 100, has_line=has_line)
    agreement = st.empty()
    scrutiny = _find_scrutiny(model, diagnosis, class_name)
    for backbone, place in places.items():
        with place.container():
            _show_test(scrutiny.by_backbone[backbone])
    with agreement.container():
        _show_agreement(diagnosis, scrutiny)


def _choose_class(model: Model, diagnosis: Diagnosis) -> str:
    names = list(model.class_names)
    leading = diagnosis.predicted_class or names[0]
    chosen = st.segmented_control(
        _("Heatmap for"),
        names,
        default=leading,
        required=True,
        format_func=class_label,
        key=f"{shared.HEATMAP_CLASS_KEY}_{diagnosis.file}_{leading}",
    )
    return chosen or leading


def _draw(
    diagnosis: Diagnosis, class_name: str, *, opacity: float, has_line: bool
) -> dict[str, "st.delta_generator.DeltaGenerator"]:
    """The image and its overlays; under each overlay an empty place for its test."""
    assert diagnosis.pixels is not None
    heatmaps = diagnosis.heatmaps_for(class_name)
    height, width = diagnosis.pixels.shape[:2]
    places = {}
    with st.grid(len(heatmaps) + 1, min_column_width=240):
        with st.container():
            st.image(
                diagnosis.pixels,
                width="stretch",
                output_format="PNG",
                alt=_("The image that was read: {name}").format(name=diagnosis.file),
            )
            st.caption(_("The image alone"))
        for backbone, heatmap in heatmaps.items():
            fine = resize_heatmap(heatmap, height=height, width=width)
            picture = overlay(diagnosis.pixels, fine, opacity=opacity)
            with st.container():
                st.image(
                    outline(picture, fine) if has_line else picture,
                    width="stretch",
                    output_format="PNG",
                    alt=_("Heatmap of {backbone}: bright areas speak for {name}").format(
                        backbone=backbone, name=class_label(class_name)
                    ),
                )
                st.caption(_("Seen by {backbone}").format(backbone=plain(backbone)))
                places[backbone] = st.empty()
    return places


def _find_scrutiny(model: Model, diagnosis: Diagnosis, class_name: str) -> Scrutiny:
    """Tested once per case and class; kept for the session with the results."""
    kept: dict[tuple[str, str, str], Scrutiny] = st.session_state.setdefault(
        shared.SCRUTINY_KEY, {}
    )
    key = _key(diagnosis, class_name)
    if key not in kept:
        with st.spinner(_("Testing the heatmaps on this image …")):
            kept[key] = second_look.scrutinise(model, diagnosis, class_name=class_name)
    return kept[key]


def known_scrutiny(diagnosis: Diagnosis) -> Scrutiny | None:
    """The test of the heatmaps for the class that leads, where it was made."""
    kept: dict[tuple[str, str, str], Scrutiny] = st.session_state.get(shared.SCRUTINY_KEY, {})
    return kept.get(_key(diagnosis, diagnosis.predicted_class or ""))


def _key(diagnosis: Diagnosis, class_name: str) -> tuple[str, str, str]:
    shown = f"{diagnosis.frame} {diagnosis.window} {diagnosis.is_inverted}"
    return f"{diagnosis.file} {diagnosis.created} {shown}", diagnosis.model_id, class_name


def _show_test(scrutiny: MapScrutiny) -> None:
    test = scrutiny.test
    if test.is_better_than_random:
        st.markdown(":material/check: " + _("**Better than chance on this image**"))
    else:
        st.warning(
            _("**No better than chance on this image.** Do not lean on this heatmap."),
            icon=":material/warning:",
        )
    st.caption(
        _(
            "Bright cells taken away: {deletion} (chance {chance}; lower is better). "
            "Bright cells alone: {insertion} (chance {chance}; higher is better)."
        ).format(
            deletion=f"{test.deletion:.2f}",
            insertion=f"{test.insertion:.2f}",
            chance=f"{test.deletion_random:.2f}",
        ),
        help=_(
            "The image is cut into 144 cells. The vote for the class is followed while cells are "
            "blurred away, brightest first (deletion), and while they come back on a blurred "
            "image, brightest first (insertion). The numbers are the mean vote on the way, beside "
            "that of cells in random order."
        ),
    )


def _show_agreement(diagnosis: Diagnosis, scrutiny: Scrutiny) -> None:
    lines = []
    if scrutiny.map_agreement is not None:
        lines.append(
            _("The maps of the backbones agree with each other: {r}").format(
                r=f"**{scrutiny.map_agreement:+.2f}**"
            )
        )
    views = {b: s.view_agreement for b, s in scrutiny.by_backbone.items()}
    known = [f"{plain(b)} **{r:+.2f}**" for b, r in views.items() if r is not None]
    if known:
        lines.append(
            _("The maps of the turned and mirrored views agree: {parts}").format(
                parts=" · ".join(known)
            )
        )
    if len(diagnosis.view_probabilities) > 1:
        lines.append(
            _("Each view alone gives {name} a probability of {parts}").format(
                name=plain(class_label(diagnosis.disease_class)),
                parts=" · ".join(f"**{percent(p)}**" for p in diagnosis.view_probabilities),
            )
        )
    if lines:
        st.markdown(
            "  \n".join(lines),
            help=_(
                "Rank correlation: +1 the same order of bright and dark, 0 unrelated, below 0 "
                "opposed. The views are the image itself, mirrored both ways, and turned by 90°."
            ),
        )
