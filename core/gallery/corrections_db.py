"""The database of corrections: SQLite by default, any SQLAlchemy URL by setting.

Owns tables and transactions. A scope is one training data set (its ``data_id``): all models trained
on it share the same corrections. Each change is one transaction that adds one version with its
edits, so a killed process leaves either all of it or nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from core.config import Settings
from core.errors import ConfigError, CurationError
from core.gallery.corrections import (
    FIELDS,
    Action,
    Change,
    Edit,
    GalleryState,
    Version,
    list_edits,
    replay,
)
from core.gallery.selection import Filter

FILE_NAME = "curation.sqlite"
Merge = Literal["added", "same", "newer", "differs"]  # what came of a history from elsewhere

_META = sa.MetaData()
_VERSIONS = sa.Table(
    "gallery_version",
    _META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("scope", sa.String(64), nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("parent", sa.Integer, nullable=False),  # the version it is based on
    sa.Column("restores", sa.Integer),  # the version that an undo or roll-back restores
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("author", sa.String(200), nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
    sa.UniqueConstraint("scope", "number"),
)
_EDITS = sa.Table(
    "gallery_edit",
    _META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version_id", sa.ForeignKey("gallery_version.id"), nullable=False, index=True),
    sa.Column("image_key", sa.Text, nullable=False),
    sa.Column("field", sa.String(16), nullable=False),
    sa.Column("old", sa.Text, nullable=False),
    sa.Column("new", sa.Text, nullable=False),
)
_FILTERS = sa.Table(
    "saved_filter",
    _META,
    sa.Column("scope", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)


def default_url(checkpoints_dir: Path) -> str:
    """The SQLite file beside the models."""
    return f"sqlite:///{checkpoints_dir.resolve() / FILE_NAME}"


def open_store(settings: Settings) -> "CurationStore":
    """Open the database named in the settings, or else the file beside the models."""
    return CurationStore(settings.database_url or default_url(settings.checkpoints_dir))


class CurationStore:
    """A connection to the database. Reading never creates a file; the first change does."""

    def __init__(self, url: str) -> None:
        try:
            self.url = make_url(url)
            self._engine = sa.create_engine(self.url)
        except (sa.exc.ArgumentError, ImportError) as err:
            raise ConfigError(
                "NEIGHBORDX_DATABASE is not a usable database URL; expected for example "
                "sqlite:////data/curation.sqlite or postgresql+psycopg://user:password@host/name.",
                code="config.database",
            ) from err
        if self.url.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
        self._has_tables = False

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def read_state(self, scope: str, *, version: int | None = None) -> GalleryState:
        """Read the gallery's current corrections, or those of an older version.

        Raises:
            CurationError: the database cannot be read, or there is no such version.
        """
        history = self.read_history(scope)
        wanted = _newest(history) if version is None else version
        if not 0 <= wanted <= _newest(history):
            raise _no_version(wanted, history)
        return replay(history, wanted)[0]

    def read_history(self, scope: str) -> list[Version]:
        """Read all versions with their edits, oldest first.

        Raises:
            CurationError: the database cannot be read.
        """
        with self._connect() as connection:
            if connection is None:
                return []
            found = connection.execute(
                sa.select(_VERSIONS).where(_VERSIONS.c.scope == scope).order_by(_VERSIONS.c.number)
            ).all()
            edits = connection.execute(
                sa.select(_EDITS)
                .join(_VERSIONS, _VERSIONS.c.id == _EDITS.c.version_id)
                .where(_VERSIONS.c.scope == scope)
                .order_by(_EDITS.c.id)
            ).all()
        by_version: dict[int, list[Edit]] = {}
        for row in edits:
            edit = Edit(row.image_key, row.field, row.old, row.new)
            by_version.setdefault(row.version_id, []).append(edit)
        return [
            Version(
                number=row.number,
                action=row.action,
                author=row.author,
                created=row.created,
                parent=row.parent,
                restores=row.restores,
                edits=tuple(by_version.get(row.id, ())),
            )
            for row in found
        ]

    def read_version(self, scope: str) -> int:
        """The number of the newest version; 0 if nothing was ever changed."""
        with self._connect() as connection:
            if connection is None:
                return 0
            newest = sa.select(sa.func.max(_VERSIONS.c.number)).where(_VERSIONS.c.scope == scope)
            return int(connection.execute(newest).scalar() or 0)

    def apply(
        self,
        scope: str,
        changes: Sequence[Change],
        *,
        given_labels: Mapping[str, str],
        expected_version: int,
        author: str = "",
    ) -> int:
        """Write changes as the next version, atomically.

        Args:
            scope: the training data id.
            changes: requested values; those an image already has are dropped.
            given_labels: key -> class name as trained, for every image that is changed.
            expected_version: the version that the user was looking at.
            author: who made the change.

        Returns:
            The number of the new version.

        Raises:
            CurationError: nothing would change, a text is too long, or somebody else has changed
                the gallery meanwhile.
        """
        history = self.read_history(scope)
        state, _ = replay(history, _newest(history))
        edits = list_edits(state, changes, given_labels)
        if not edits:
            raise CurationError(
                "nothing would change: the images have these values already.",
                code="curation.nothing",
            )
        return self._add(scope, history, edits, expected_version, action="change", author=author)

    def undo(self, scope: str, *, expected_version: int, author: str = "") -> int:
        """Undo the last change; repeated calls undo earlier ones.

        Raises:
            CurationError: nothing is left to undo, or somebody else has changed the gallery
                meanwhile.
        """
        history = self.read_history(scope)
        if not history or history[-1].state_of == 0:
            raise CurationError("there is no change left to undo.", code="curation.no_undo")
        state_of = {entry.number: entry for entry in history}
        target = state_of[history[-1].state_of].parent
        return self._restore(scope, history, target, expected_version, "undo", author)

    def roll_back(self, scope: str, number: int, *, expected_version: int, author: str = "") -> int:
        """Restore an older version by adding a new one with its state.

        Raises:
            CurationError: there is no such version, it is the current one, or somebody else has
                changed the gallery meanwhile.
        """
        history = self.read_history(scope)
        if not 0 <= number <= _newest(history):
            raise _no_version(number, history)
        return self._restore(scope, history, number, expected_version, "rollback", author)

    def add_history(
        self, scope: str, versions: Sequence[Version], *, may_add: bool = True
    ) -> Merge:
        """Add the history that travelled with a model, with its numbers, times and authors.

        Only versions that continue the history here are added, all in one transaction.

        Args:
            scope: the training data id.
            versions: the whole history, oldest first.
            may_add: False: add nothing; a longer history then counts as one that differs.

        Returns:
            "added"; "same"; "newer": the history here continues it; "differs": nothing was added.

        Raises:
            CurationError: the numbers are not 1, 2, 3, ..., or somebody else changed the gallery.
        """
        if [entry.number for entry in versions] != list(range(1, len(versions) + 1)):
            raise CurationError(
                "the corrections that came with the model are not a whole history.",
                code="curation.history",
            )
        here = self.read_history(scope)
        n_shared = min(len(here), len(versions))
        if list(here[:n_shared]) != list(versions[:n_shared]):
            return "differs"
        if len(here) >= len(versions):
            return "same" if len(here) == len(versions) else "newer"
        if not may_add:
            return "differs"
        try:
            with self._begin() as connection:
                for entry in versions[n_shared:]:
                    _insert(connection, scope, entry)
        except sa.exc.IntegrityError as err:  # race: another process added a version
            raise _moved_on(len(here), len(here) + 1) from err
        return "added"

    def _restore(
        self,
        scope: str,
        history: Sequence[Version],
        target: int,
        expected_version: int,
        action: Action,
        author: str,
    ) -> int:
        now, given = replay(history, _newest(history))
        then, _ = replay(history, target)
        keys = {edit.key for entry in history for edit in entry.edits}
        wanted = [
            Change(key, name, then.read(key, name, given_label=given.get(key, "")))
            for key in sorted(keys)
            for name in FIELDS
        ]
        edits = list_edits(now, wanted, {key: given.get(key, "") for key in keys})
        if not edits:
            raise CurationError("this is the current version already.", code="curation.nothing")
        return self._add(
            scope, history, edits, expected_version, action=action, author=author, restores=target
        )

    def _add(
        self,
        scope: str,
        history: Sequence[Version],
        edits: Sequence[Edit],
        expected_version: int,
        *,
        action: Action,
        author: str,
        restores: int | None = None,
    ) -> int:
        """Add a version and all of its edits in one transaction."""
        current = _newest(history)
        if current != expected_version:
            raise _moved_on(expected_version, current)
        version = Version(
            number=current + 1,
            action=action,
            author=author.strip()[:200],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            parent=history[-1].state_of if history else 0,
            restores=restores,
            edits=tuple(edits),
        )
        try:
            with self._begin() as connection:
                _insert(connection, scope, version)
        except sa.exc.IntegrityError as err:  # race: another process took this number first
            raise _moved_on(expected_version, current + 1) from err
        return current + 1

    def save_filter(self, scope: str, name: str, wanted: Filter) -> None:
        """Save a filter under a name, replacing any existing one."""
        name = name.strip()
        if not 1 <= len(name) <= 100:
            raise CurationError(
                "a filter needs a name of 1 to 100 characters.", code="curation.filter_name"
            )
        with self._begin() as connection:
            connection.execute(_pick_filter(sa.delete(_FILTERS), scope, name))
            row = {"scope": scope, "name": name, "body": wanted.to_json()}
            connection.execute(sa.insert(_FILTERS), row)

    def delete_filter(self, scope: str, name: str) -> None:
        """Delete a filter, if it exists."""
        with self._begin() as connection:
            connection.execute(_pick_filter(sa.delete(_FILTERS), scope, name))

    def read_filters(self, scope: str) -> dict[str, Filter]:
        """The saved filters by name."""
        with self._connect() as connection:
            if connection is None:
                return {}
            rows = connection.execute(
                sa.select(_FILTERS).where(_FILTERS.c.scope == scope).order_by(_FILTERS.c.name)
            ).all()
        return {row.name: Filter.from_json(row.body) for row in rows}

    @contextmanager
    def _connect(self) -> Iterator[sa.Connection | None]:
        """A connection for reading; None if there is no database yet."""
        file = self.url.database if self.url.get_backend_name() == "sqlite" else None
        if file and file != ":memory:" and not Path(file).is_file():
            yield None
            return
        with _translate_errors(), self._engine.connect() as connection:
            if not self._has_tables:
                self._has_tables = sa.inspect(connection).has_table(_VERSIONS.name)
            yield connection if self._has_tables else None

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        with _translate_errors():
            if not self._has_tables:
                _META.create_all(self._engine)
                self._has_tables = True
            with self._engine.begin() as connection:
                yield connection


def _insert(connection: sa.Connection, scope: str, version: Version) -> None:
    told = {key: value for key, value in asdict(version).items() if key != "edits"}
    added = connection.execute(sa.insert(_VERSIONS), {"scope": scope, **told})
    assert added.inserted_primary_key is not None
    version_id = added.inserted_primary_key[0]
    rows = [
        {
            "version_id": version_id,
            "image_key": edit.key,
            "field": edit.field,
            "old": edit.old,
            "new": edit.new,
        }
        for edit in version.edits
    ]
    if rows:
        connection.execute(sa.insert(_EDITS), rows)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Sync fully at each commit, and wait up to ten seconds for another writer."""
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError:
        raise
    except sa.exc.SQLAlchemyError as err:
        raise CurationError(
            f"the curation database cannot be used ({type(err).__name__}). Check that it runs, "
            "that its folder can be written, and NEIGHBORDX_DATABASE.",
            code="curation.database",
        ) from err


def _pick_filter(statement: sa.Delete, scope: str, name: str) -> sa.Delete:
    return statement.where(_FILTERS.c.scope == scope, _FILTERS.c.name == name)


def _no_version(number: int, history: Sequence[Version]) -> CurationError:
    return CurationError(
        f"the gallery has no version {number}; there are 0 to {_newest(history)}.",
        code="curation.version",
    )


def _moved_on(expected: int, current: int) -> CurationError:
    return CurationError(
        f"the gallery is at version {current}, not {expected} any more: somebody else changed it. "
        "Look at it again and repeat the change.",
        code="curation.moved_on",
        params={"current": current},
    )


def _newest(history: Sequence[Version]) -> int:
    return history[-1].number if history else 0
