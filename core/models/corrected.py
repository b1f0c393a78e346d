"""Apply gallery corrections to a loaded model."""

import dataclasses
from collections.abc import Mapping

from core.gallery.corrections import GalleryState
from core.models.bundle import ModelBundle
from core.models.ensemble import Ensemble, Model


def curate(model: Model, states: Mapping[str, GalleryState]) -> Model:
    """Return the same model with other corrections; networks are shared, nothing is reloaded.

    Args:
        model: a loaded model.
        states: by training data id; a member whose data is not listed keeps its own state.
    """
    if isinstance(model, Ensemble):
        members = tuple(
            dataclasses.replace(member, bundle=_curate_bundle(member.bundle, states))
            for member in model.members
        )
        return dataclasses.replace(model, members=members)
    return _curate_bundle(model, states)


def _curate_bundle(bundle: ModelBundle, states: Mapping[str, GalleryState]) -> ModelBundle:
    state = states.get(bundle.config.data_id, bundle.curation)
    curated = dataclasses.replace(bundle, curation=state)
    _ = curated.gallery  # raises here if the state cannot be applied
    return curated
