"""Closed sessions: the heap is trimmed a few times after one is closed, and not before."""

import asyncio

import pytest

from pages import _sessions as sessions


def test_the_heap_is_trimmed_after_a_session_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([{"a"}, {"a", "b"}, {"b"}, {"b"}, {"b"}, {"b"}, {"b", "c"}])
    n_trims_at: list[int] = []
    n_trims = 0

    def list_sessions() -> set[str]:
        n_trims_at.append(n_trims)
        try:
            return next(seen)
        except StopIteration:
            raise asyncio.CancelledError from None

    def trim_heap() -> bool:
        nonlocal n_trims
        n_trims += 1
        return True

    async def sleep(_seconds: float) -> None:
        return None

    monkeypatch.setattr(sessions, "list_sessions", list_sessions)
    monkeypatch.setattr(sessions, "trim_heap", trim_heap)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(sessions.sweep_closed_sessions())
    # trims before each check: none while sessions are opened, three after "a" is closed
    assert n_trims_at == [0, 0, 0, 1, 2, 3, 3, 3]
