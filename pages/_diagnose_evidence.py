"""Diagnose page: the evidence of one case. Neighbours and their vote, heatmaps, the map."""

import pandas as pd
import streamlit as st

from core.diagnosis import Diagnosis, Neighbour
from core.ensemble import Model
from core.explain import overlay
from pages import _charts as charts
from pages import _shared as shared
from pages._text import _, class_label, ngettext, percent, plain

_N_CARDS = 16  # shown at once; the rest of a long ledger on request
_ALL_KEY = "diagnose_all_neighbours"


def show_neighbours(model: Model, diagnosis: Diagnosis) -> None:
    """The vote ledger as pictures, its sum by class, and what was kept out of it."""
    st.markdown("#### " + _("Nearest training images, and their share of the vote"))
    if not diagnosis.vote_shares:
        st.markdown(
            _("This model is a plain classifier: the images below are like yours but did not vote.")
        )
    sums = " · ".join(
        f"{_mark(name, diagnosis)} {plain(class_label(name))} **{percent(share)}**"
        for name, share in diagnosis.vote_shares.items()
    )
    if sums:
        st.markdown(
            _("Vote by class: {sums}").format(sums=sums),
            help=_(
                "Each training image adds 1 / distance to its class; the shares of all of them sum "
                "to 100 %. The probability above is this vote after correction on held-out images."
            ),
        )
    shown = diagnosis.neighbours
    if len(shown) > _N_CARDS and not st.toggle(
        _("Show all {n}").format(n=len(shown)), key=_ALL_KEY
    ):
        shown = shown[:_N_CARDS]
    with st.grid("auto", min_column_width=120, gap=("small", "xsmall")):
        for neighbour in shown:
            _show_card(model, diagnosis, neighbour)
    _show_nearest_other(model, diagnosis)
    _show_left_out(diagnosis)
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
            alt=_("Training image number {rank}, labelled {name}").format(
                rank=neighbour.rank, name=label
            ),
        )
        lines = [
            f"**{neighbour.rank}** {_mark(neighbour.class_name, diagnosis)} **{plain(label)}**",
            _("share {share}").format(share=f"**{neighbour.share * 100:.1f} %**")
            if neighbour.share > 0
            else _("did not vote"),
            _("distance {d}").format(d=f"{neighbour.distance:.3f}"),
        ]
        if neighbour.share > 0:
            lines.append(_("weight {w}").format(w=f"{neighbour.weight:.2f}"))
        st.markdown("  \n".join(f":small[{line}]" for line in lines))
        if not model.has_original(neighbour.index):
            st.markdown(":small[:material/link_off: " + _("original has moved") + "]")


def _show_nearest_other(model: Model, diagnosis: Diagnosis) -> None:
    other = diagnosis.nearest_other
    if other is None:
        return
    with st.container(horizontal=True, gap="small", key="nearest-other"):
        with st.container(width=150):
            _show_card(model, diagnosis, other, place="nearest")
        with st.container(width=420):
            st.markdown(
                _("**The nearest image that says otherwise**, labelled {name}.").format(
                    name=plain(class_label(other.class_name))
                )
            )
            st.markdown(
                _("It is number {rank} by distance. Compare it with your image.").format(
                    rank=other.rank
                )
            )


def _show_left_out(diagnosis: Diagnosis) -> None:
    n_same = sum(item.reason == "duplicate" for item in diagnosis.left_out)
    n_group = len(diagnosis.left_out) - n_same
    if n_same:
        st.info(
            ngettext(
                "This very image is among the training images ({n} copy). It did not vote.",
                "This very image is among the training images ({n} copies). They did not vote.",
                n_same,
            ).format(n=n_same),
            icon=":material/content_copy:",
        )
    if n_group:
        st.info(
            ngettext(
                "{n} training image of the same patient was kept out of the vote.",
                "{n} training images of the same patient were kept out of the vote.",
                n_group,
            ).format(n=n_group),
            icon=":material/person_off:",
        )


def _show_ledger(diagnosis: Diagnosis) -> None:
    with st.expander(_("The vote as a table")):
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
                "weight": st.column_config.NumberColumn(_("Weight (1 / distance)"), format="%.3f"),
                "share": st.column_config.NumberColumn(_("Share of the vote"), format="%.2f %%"),
                "key": st.column_config.TextColumn(_("Training image")),
            },
        )


def show_heatmaps(diagnosis: Diagnosis) -> None:
    """One overlay per backbone, on the geometry of the image as displayed."""
    if not diagnosis.heatmaps or diagnosis.pixels is None:
        return
    target = class_label(diagnosis.heatmap_class or "")
    st.markdown(
        "#### " + _("Where the image speaks for {name}").format(name=plain(target)),
        help=_(
            "Grad-CAM of the vote: bright areas pulled the answer towards this class. It shows "
            "where the model looked, not whether it is right, and it does not outline a lesion."
        ),
    )
    opacity = st.slider(
        _("Heatmap opacity"), 0, 100, 60, step=5, format="%d %%", key=shared.OPACITY_KEY, width=320
    )
    with st.grid(len(diagnosis.heatmaps) + 1, min_column_width=240):
        with st.container():
            st.image(
                diagnosis.pixels,
                width="stretch",
                output_format="PNG",
                alt=_("The image that was read: {name}").format(name=diagnosis.file),
            )
            st.caption(_("The image alone"))
        for backbone, heatmap in diagnosis.heatmaps.items():
            with st.container():
                st.image(
                    overlay(diagnosis.pixels, heatmap, opacity=opacity / 100),
                    width="stretch",
                    output_format="PNG",
                    alt=_("Heatmap of {backbone}: bright areas speak for {name}").format(
                        backbone=backbone, name=target
                    ),
                )
                st.caption(_("Seen by {backbone}").format(backbone=plain(backbone)))


def show_map(model: Model, diagnosis: Diagnosis) -> None:
    """The gallery in two dimensions with this image's place in it."""
    if diagnosis.map_xy is None:
        return
    st.markdown(
        "#### " + _("Where it lies among the training images"),
        help=_(
            "A flat picture (UMAP) of how alike the images are to the model. It bends distances: "
            "the vote uses the true ones, so a voting image may look far away here."
        ),
    )
    st.plotly_chart(
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
        key="diagnose_map",
    )
