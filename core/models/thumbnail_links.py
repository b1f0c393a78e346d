"""Unguessable addresses for the thumbnails of loaded models.

Owns the addresses only: a page that shows a model requests one and passes it to the browser.
Nothing is copied or loaded, because the images come from models already in memory.
"""

import secrets
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the server uses this module before torch is imported
    from core.models.ensemble import Model

_MAX_MODELS = 8  # addresses kept; the least recently used one is dropped first


class Albums:
    """Token -> model. Shared by every user of a server; safe to use from several threads."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, Model] = OrderedDict()
        self._lock = threading.Lock()

    def publish(self, model: "Model") -> str:
        """Return the token for a model's thumbnails; the same model keeps its token."""
        with self._lock:
            known = (token for token, other in self._models.items() if other is model)
            token = next(known, None) or secrets.token_urlsafe(16)
            self._models[token] = model
            self._models.move_to_end(token)
            while len(self._models) > _MAX_MODELS:
                self._models.popitem(last=False)
        return token

    def find(self, token: str, row: int) -> bytes | None:
        """Return the thumbnail (PNG or JPEG, at most 256 px) at an album position, or None.

        Args:
            token: as returned by ``publish``.
            row: album position, from 0.
        """
        with self._lock:
            model = self._models.get(token)
        if model is None or row < 0:
            return None
        try:
            return model.encoded_thumbnail(row)
        except IndexError:
            return None
