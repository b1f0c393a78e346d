"""Diagnose page: heatmaps for either class by the chosen method, with their tests.

The pictures are shown first; their test on this image takes seconds and appears afterwards.
"""

from collections.abc import Sequence

import streamlit as st

from core.answers.diagnosis import Diagnosis, Heatmap
from core.answers.scrutiny import MapScrutiny, Scrutiny, draw_maps, scrutinise
from core.explanations.grad_cam import outline, overlay, resize_heatmap
from core.explanations.methods import SHOWN, list_offered
from core.models.ensemble import Model
from pages import _shared as shared
from pages._text import _, class_label, percent, plain

_SETTINGS_WIDTH = 320
_N_KEPT = 64  # tested sets of heatmaps in a session, a few kilobytes each; the oldest go first


def show_heatmaps(model: Model, diagnosis: Diagnosis) -> Scrutiny | None:
    """One overlay per backbone, on the geometry of the image as displayed; what is on view."""
    if not diagnosis.maps or diagnosis.pixels is None:
        return None
    st.markdown(
        "#### " + _("Heatmaps: what moved the vote towards each class"),
        help=_(
            "Bright areas pulled the vote towards this class. The heatmap shows where the model "
            "looked, not whether it is right, and it does not outline a lesion."
        ),
    )
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        class_name = _choose_class(model, diagnosis)
        method = _choose_method()
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
            help=_("Outlines the area where the heatmap exceeds half of its maximum."),
        )
    kept: dict[tuple[str, ...], Scrutiny] = st.session_state.setdefault(shared.SCRUTINY_KEY, {})
    key = (*case_key(diagnosis), diagnosis.model_id, class_name, method)
    known = kept.get(key)
    if known is not None:
        maps = known.maps
    else:
        with st.spinner(_("Drawing the heatmaps …")):
            maps = draw_maps(model, diagnosis, class_name=class_name, method=method)
    places = _draw(diagnosis, maps, opacity=opacity / 100, has_line=has_line)
    agreement = st.empty()
    if known is None:
        with st.spinner(_("Testing the heatmaps on this image …")):
            known = kept[key] = scrutinise(model, diagnosis, maps)
        while len(kept) > _N_KEPT:
            del kept[next(iter(kept))]
    for backbone, place in places.items():
        with place.container():
            _show_test(known.by_backbone[backbone])
    with agreement.container():
        _show_agreement(diagnosis, known)
    return known


def case_key(diagnosis: Diagnosis) -> tuple[str, str]:
    """What tells one reading of a file from another, the way it was shown included."""
    shown = f"{diagnosis.frame} {diagnosis.window} {diagnosis.is_inverted}"
    return diagnosis.file, f"{diagnosis.sha256} {diagnosis.created} {shown}"


def _choose_class(model: Model, diagnosis: Diagnosis) -> str:
    names = list(model.class_names)
    leading = diagnosis.predicted_class or names[0]
    chosen = st.segmented_control(
        _("Heatmap for class"),
        names,
        default=leading,
        required=True,
        format_func=class_label,
        key=f"{shared.HEATMAP_CLASS_KEY}_{diagnosis.file}_{diagnosis.sha256}_{leading}",
    )
    return chosen or leading


def _choose_method() -> str:
    chosen = st.segmented_control(
        _("Heatmap method"),
        list_offered(),
        default=SHOWN,
        required=True,
        format_func=shared.heatmap_method_label,
        key=shared.METHOD_KEY,
        help=_(
            "Grad-CAM weights the last layer, whose cells each see a large part of the image: "
            "its bright area may lie beside the lesion. Integrated gradients follow the vote "
            "from an image without spatial detail to this one and add up the contribution of "
            "each location: finer, but a few seconds slower. Both are tested on this image; "
            "trust the one that passes."
        ),
    )
    return chosen or SHOWN


def _draw(
    diagnosis: Diagnosis, maps: Sequence[Heatmap], *, opacity: float, has_line: bool
) -> dict[str, "st.delta_generator.DeltaGenerator"]:
    """The image and its overlays; under each overlay an empty place for its test."""
    assert diagnosis.pixels is not None
    height, width = diagnosis.pixels.shape[:2]
    places = {}
    with st.grid(len(maps) + 1, min_column_width=240):
        with st.container():
            st.image(
                diagnosis.pixels,
                width="stretch",
                output_format="PNG",
                alt=_("Image that was read: {name}").format(name=diagnosis.file),
            )
            st.caption(_("Original image"))
        for heatmap in maps:
            fine = resize_heatmap(heatmap.values, height=height, width=width)
            picture = overlay(diagnosis.pixels, fine, opacity=opacity)
            with st.container():
                st.image(
                    outline(picture, fine) if has_line else picture,
                    width="stretch",
                    output_format="PNG",
                    alt=_("Heatmap of {backbone}: bright areas support {name}").format(
                        backbone=heatmap.backbone, name=class_label(heatmap.class_name)
                    ),
                )
                st.caption(_("Backbone: {backbone}").format(backbone=plain(heatmap.backbone)))
                places[heatmap.backbone] = st.empty()
    return places


def _show_test(scrutiny: MapScrutiny) -> None:
    test = scrutiny.test
    if test.is_better_than_random:
        st.markdown(":material/check: " + _("**Better than chance on this image**"))
    else:
        st.warning(
            _(
                "**No better than chance on this image.** Do not rely on this heatmap; try the "
                "other method."
            ),
            icon=":material/warning:",
        )
    st.caption(
        _(
            "Deletion test: mean vote {deletion} as the brightest cells are removed first (random"
            " order {chance}; lower is better). Insertion test: mean vote {insertion} as they are"
            " restored first (random order {chance}; higher is better)."
        ).format(
            deletion=f"{test.deletion:.2f}",
            insertion=f"{test.insertion:.2f}",
            chance=f"{test.deletion_random:.2f}",
        ),
        help=_(
            "The image is divided into 144 cells. Cells are blurred out, brightest first "
            "(deletion), and restored on a blurred image, brightest first (insertion), while the"
            " vote for the class is recorded. The numbers are the mean vote along the way, next "
            "to that for cells in random order. “Better than chance” means that both differ from"
            " random order by more than 0.02, and by more than random orders differ from each "
            "other."
        ),
    )


def _show_agreement(diagnosis: Diagnosis, scrutiny: Scrutiny) -> None:
    lines = []
    if scrutiny.map_agreement is not None:
        lines.append(
            _("Agreement between the heatmaps of the backbones: {r}").format(
                r=f"**{scrutiny.map_agreement:+.2f}**"
            )
        )
    views = {b: s.view_agreement for b, s in scrutiny.by_backbone.items()}
    known = [f"{plain(b)} **{r:+.2f}**" for b, r in views.items() if r is not None]
    if known:
        lines.append(
            _("Agreement between the heatmaps of rotated and mirrored views: {parts}").format(
                parts=" · ".join(known)
            )
        )
    if len(diagnosis.view_probabilities) > 1:
        lines.append(
            _("Probability of {name} in each view: {parts}").format(
                name=plain(class_label(diagnosis.disease_class)),
                parts=" · ".join(f"**{percent(p)}**" for p in diagnosis.view_probabilities),
            )
        )
    if lines:
        st.markdown(
            "  \n".join(lines),
            help=_(
                "Rank correlation: +1 the same order of bright and dark, 0 unrelated, below 0 "
                "opposite. The views are the original image, mirrored both ways, and turned by "
                "90°; any further views are the same image at other exposures and have no "
                "heatmap."
            ),
        )
