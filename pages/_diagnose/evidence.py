"""Diagnose page: nearest training images, the vote, side-by-side comparison, the map."""

from typing import Any

import pandas as pd
import streamlit as st

from core.answers.diagnosis import Diagnosis, Neighbour
from core.images.decode import fit_square
from core.models.ensemble import Model
from core.models.originals import load_case
from pages import _shared as shared
from pages._charts import cases as charts
from pages._text import _, class_label, ngettext, percent, plain
from pages._thumbnails import show_on_hover

_N_CARDS = 16  # shown at once; the rest of a long ledger on request
_ALL_KEY = "diagnose_all_neighbours"
_SIDE_PX = 640


def show_neighbours(model: Model, diagnosis: Diagnosis) -> None:
    """The vote ledger as pictures, its sum by class, and what was kept out of it."""
    is_novel = diagnosis.abstain_reason == "novel"  # nothing may speak for an answer
    title = _("Nearest training images and their share of the vote")
    st.markdown("#### " + (_("Nearest training images") if is_novel else title))
    if not diagnosis.vote_shares:
        st.markdown(
            _(
                "This model is a plain classifier: the images below are similar to yours but did "
                "not vote."
            )
        )
    sums = " · ".join(
        f"{_mark(name, diagnosis)} {plain(class_label(name))} **{percent(share)}**"
        for name, share in diagnosis.vote_shares.items()
    )
    if sums and not is_novel:
        st.markdown(
            _("Vote by class: {sums}").format(sums=sums),
            help=_(
                "Each training image adds 1 / distance to its class; the shares add up to 100 %."
                " The probability above is this vote after calibration on held-out images. Where"
                " several models vote, distance and weight are means over the models; an image "
                "has zero weight in a model where it is not among the nearest."
            ),
        )
    shown = diagnosis.neighbours
    if len(shown) > _N_CARDS and not st.toggle(
        _("Show all {n}").format(n=len(shown)), key=_ALL_KEY
    ):
        shown = shown[:_N_CARDS]
    _show_closeness(diagnosis)
    with st.grid("auto", min_column_width=120, gap=("small", "xsmall")):
        for neighbour in shown:
            _show_card(model, diagnosis, neighbour)
    if not is_novel:
        _show_nearest_other(model, diagnosis)
    _show_side_by_side(model, diagnosis)
    _show_left_out(diagnosis)
    if not is_novel:
        _show_ledger(diagnosis)


def _mark(class_name: str, diagnosis: Diagnosis) -> str:
    return "◆" if class_name == diagnosis.disease_class else "●"


def _show_card(
    model: Model, diagnosis: Diagnosis, neighbour: Neighbour, *, place: str = "vote"
) -> None:
    kind = "disease" if neighbour.class_name == diagnosis.disease_class else "other"
    label = class_label(neighbour.class_name)
    with st.container(key=f"card-{kind}-{place}-{neighbour.rank}"):
        st.image(
            model.thumbnail(neighbour.index),
            width="stretch",
            output_format="PNG",
            alt=_("Training image, rank {rank}, labelled {name}").format(
                rank=neighbour.rank, name=label
            ),
        )
        mark = _mark(neighbour.class_name, diagnosis)
        lines = [f"**{neighbour.rank}** {mark} **{plain(label)}**"]
        has_vote = diagnosis.abstain_reason != "novel"
        if has_vote and neighbour.share > 0:
            lines.append(_("share {share}").format(share=f"**{neighbour.share * 100:.1f} %**"))
        elif has_vote:
            lines.append(_("did not vote"))
        lines.append(_("distance {d}").format(d=f"{neighbour.distance:.3f}"))
        if has_vote and neighbour.share > 0:
            lines.append(_("weight {w}").format(w=f"{neighbour.weight:.2f}"))
        st.markdown("  \n".join(f":small[{line}]" for line in lines))
        if not model.has_original(neighbour.index):
            st.markdown(":small[:material/link_off: " + _("original has moved") + "]")
        st.button(
            _("Compare"),
            key=f"diagnose_compare_{place}_{neighbour.rank}",
            on_click=_compare,
            args=(diagnosis.sha256, neighbour.index),
            type="tertiary",
            icon=":material/compare:",
            help=_("Show next to your image at the same size"),
        )


def _compare(sha256: str, index: int) -> None:
    st.session_state[shared.COMPARE_KEY] = (sha256, index)


def _show_closeness(diagnosis: Diagnosis) -> None:
    """Say so when even the nearest training image is not alike."""
    if not diagnosis.neighbours or diagnosis.has_close_case:
        return
    st.warning(
        _(
            "**No similar case.** Even the nearest training image is at distance {distance}; two"
            " training images of the same class are usually closer than {limit}."
        ).format(
            distance=f"{diagnosis.nearest_distance:.3f}", limit=f"{diagnosis.close_limit:.3f}"
        ),
        icon=":material/social_distance:",
    )


def _show_side_by_side(model: Model, diagnosis: Diagnosis) -> None:
    """The image and one training image at the same size; the nearest until another is chosen."""
    sha256, index = st.session_state.get(shared.COMPARE_KEY, ("", -1))
    known = {n.index: n for n in (*diagnosis.neighbours, diagnosis.nearest_other) if n}
    if sha256 != diagnosis.sha256 or index not in known or diagnosis.pixels is None:
        return
    neighbour = known[index]
    label = class_label(neighbour.class_name)
    with st.container(border=True, key="side-by-side"):
        st.markdown("##### " + _("Side by side"))
        left, right = st.columns(2)
        with left:
            st.image(
                fit_square(diagnosis.pixels, side=_SIDE_PX),
                width="stretch",
                output_format="PNG",
                alt=_("Image that was read: {name}").format(name=diagnosis.file),
            )
            st.caption(_("Your image"))
        with right:
            st.image(
                fit_square(load_case(model, index), side=_SIDE_PX),
                width="stretch",
                output_format="PNG",
                alt=_("Training image, rank {rank}, labelled {name}").format(
                    rank=neighbour.rank, name=label
                ),
            )
            st.caption(
                _("Rank {rank}, labelled {name}, distance {d}").format(
                    rank=neighbour.rank, name=plain(label), d=f"{neighbour.distance:.3f}"
                )
            )
        st.button(_("Close"), key="diagnose_compare_close", on_click=_compare, args=("", -1))


def _show_nearest_other(model: Model, diagnosis: Diagnosis) -> None:
    other = diagnosis.nearest_other
    if other is None:
        return
    with st.container(horizontal=True, gap="small", key="nearest-other"):
        with st.container(width=150):
            _show_card(model, diagnosis, other, place="nearest")
        with st.container(width=420):
            st.markdown(
                _("**Nearest image of the other class**, labelled {name}.").format(
                    name=plain(class_label(other.class_name))
                )
            )
            st.markdown(
                _("It ranks {rank} by distance. Compare it with your image.").format(
                    rank=other.rank
                )
            )


def _show_left_out(diagnosis: Diagnosis) -> None:
    n_same = sum(item.reason == "duplicate" for item in diagnosis.left_out)
    n_group = len(diagnosis.left_out) - n_same
    if n_same:
        st.info(
            ngettext(
                "This exact image is among the training images ({n} copy). It did not vote.",
                "This exact image is among the training images ({n} copies). They did not vote.",
                n_same,
            ).format(n=n_same),
            icon=":material/content_copy:",
        )
    if n_group:
        st.info(
            ngettext(
                "{n} training image of the same patient was excluded from the vote.",
                "{n} training images of the same patient were excluded from the vote.",
                n_group,
            ).format(n=n_group),
            icon=":material/person_off:",
        )


def _show_ledger(diagnosis: Diagnosis) -> None:
    with st.expander(_("The vote as a table")):
        if len(diagnosis.members) > 1:
            st.caption(
                _(
                    "Several models vote. Distance: the mean over the models. Weight and share: "
                    "the weighted mean of the image's values in each model, zero where it is not"
                    " among that model's nearest, so they do not follow from the distance. A "
                    "missing rank belongs to an image that is near on average but not among any "
                    "model's nearest."
                )
            )
        rows = [
            {
                "rank": n.rank,
                "label": f"{_mark(n.class_name, diagnosis)} {class_label(n.class_name)}",
                "distance": n.distance,
                "weight": n.weight,
                "share": n.share * 100,
                "key": n.key,
            }
            for n in diagnosis.neighbours
        ]
        st.dataframe(
            pd.DataFrame(rows),
            hide_index=True,
            alt=_("Table of the vote: every training image with its distance, weight and share"),
            column_config={
                "rank": st.column_config.NumberColumn(_("Rank"), width="small"),
                "label": st.column_config.TextColumn(_("Label")),
                "distance": st.column_config.NumberColumn(_("Distance"), format="%.4f"),
                "weight": st.column_config.NumberColumn(_("Weight"), format="%.3f"),
                "share": st.column_config.NumberColumn(_("Share of the vote"), format="%.2f %%"),
                "key": st.column_config.TextColumn(_("Training image")),
            },
        )


def show_map(model: Model, diagnosis: Diagnosis) -> None:
    """The gallery in two dimensions with this image's place in it."""
    if diagnosis.map_xy is None:
        return
    st.markdown(
        "#### " + _("Position among the training images"),
        help=_(
            "A 2-D projection (UMAP) of how similar the images are to the model. It distorts "
            "distances: the vote uses distances in the embedding space, so an image that voted "
            "can appear far away here."
        ),
    )
    chart, picked = st.columns([4, 1])
    with chart:
        event = st.plotly_chart(
            charts.build_map(
                diagnosis,
                model.projection.gallery_xy,
                model.gallery.labels,
                model.gallery.keys,
                model.class_names,
                translate=_,
                label=class_label,
            ),
            config={"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]},
            on_select="rerun",
            selection_mode="points",
            key="diagnose_map",
        )
        show_on_hover(model, key="diagnose_map")
    with picked:
        _show_picked(model, event)


def _show_picked(model: Model, event: Any) -> None:
    """The training image behind the point that was clicked."""
    row = next(iter(charts.list_rows(event["selection"]["points"])), len(model.gallery))
    if row >= len(model.gallery):
        st.caption(_("Hover over a point to preview its image; click it to keep the image here."))
        return
    label = class_label(model.class_names[int(model.gallery.labels[row])])
    st.image(
        model.thumbnail(row),
        width="stretch",
        output_format="PNG",
        alt=_("Training image, labelled {name}").format(name=label),
    )
    st.caption(f"{plain(model.gallery.keys[row])}  \n**{plain(label)}**")
