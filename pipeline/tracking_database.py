"""An SQLite database of MLflow: whole or absent, upgraded aside, and at home where its workspace is.

MLflow's migrations are not one transaction: whoever is killed in one leaves a database that nobody can open
(mlflow#23721). So they run on a file beside the database, which takes its place when they are done.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from thousandfold.ground.errors import UserError
from thousandfold.ground.files import atomic_file, is_temporary

EXPERIMENT = "thousandfold"
EXPERIMENT_TAGS = {
    "mlflow.note.content": (
        "Teachers that learn to reach goals, students distilled from them, and the policies that leave for a "
        "robot. Each chain is one run with a run a stage below it: choose two chains and Compare them by "
        "their settings and by the figures without a group, such as `teacher_success`. Charts are grouped: "
        "`train/`, `eval/` (episodes in closed loop), `latency/`, `system/`."
    )
}
"""Its description, in Markdown."""
BUSY_S = 5.0
"""How long to wait for a program that has locked the database."""

# Where MLflow 3.17 keeps locations of artifacts: table, column.
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
    ("trace_tags", "value"),
    ("workspaces", "trace_archival_location"),
)
_REVISION = "alembic_version"
# What of a database is a user's; a half-made one may hold MLflow's own first experiment.
_RECORDS = ("runs", "registered_models", "trace_info", "logged_models")


def sqlite_uri(database: Path) -> str:
    """Return the address of a database for SQLAlchemy, whatever characters its path has."""
    import sqlalchemy

    # With the driver's name: after "sqlite:///" MLflow would make the folder of the path as it is quoted.
    return sqlalchemy.URL.create("sqlite+pysqlite", database=str(database)).render_as_string()


def file_uri(path: Path) -> str:
    """Return the address of a folder as MLflow reads it, which takes its bytes for UTF-8 under every locale.

    `Path.as_uri` quotes the bytes of the file system's encoding: under ISO-8859-1 another folder's.
    """
    return f"file://{quote(str(path))}"


def make_ready(database: Path, artifacts: Path, say: Callable[[str], None], to_write: bool = True) -> None:
    """Make a database, upgrade an older one, or make one anew that was left half-made; hold its lock.

    Args:
        database: The file.
        artifacts: Where a new one has its artifacts.
        say: Takes the line about what was done to a database that was there.
        to_write: It must be free to be written to.

    Raises:
        UserError: It is of a newer MLflow, or half-upgraded and holds runs.
        Exception: SQLite's, SQLAlchemy's and the file system's own.
    """
    for path in database.parent.iterdir():  # of those that were killed while they made one
        if is_temporary(path) and database.name in path.name:
            path.unlink()
    if not database.exists():
        if database.is_symlink():  # to a place that may come back, and that nobody asked to leave
            raise FileNotFoundError(f"it is a link to {database.readlink()}, which is not there")
        _remove_logs(database)
        with atomic_file(database) as new:
            _migrate(new, artifacts)
        return
    with contextlib.closing(_connect(database)) as old:
        if to_write:
            old.execute("BEGIN IMMEDIATE")
            old.execute("ROLLBACK")
        found = _look(old)
        if not found.whole:
            # Else the log of the old one would be taken for one of the new, which has its name.
            old.execute("PRAGMA journal_mode = DELETE")
            old.execute("BEGIN IMMEDIATE")  # nobody else writes to it until it is replaced
            _replace(database, found, artifacts, say)


def move_along(root: Path, database: Path, artifacts: Path, say: Callable[[str], None]) -> None:
    """Let the locations in the database of a workspace that was moved or copied name where it is now.

    The lock of the database is held. `say` takes the line about what was done.
    """
    with contextlib.closing(_connect(database)) as connection:
        found = connection.execute(
            "SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)
        ).fetchone()
        here, there = file_uri(artifacts), found[0] if found else None
        below = f"/{artifacts.relative_to(root).as_posix()}"
        if there in (None, here) or not there.startswith("file:") or not there.endswith(below):
            return  # as it is, or a place that somebody chose
        old_root, moved = unquote(urlsplit(there).path).removesuffix(below), 0
        connection.execute("BEGIN IMMEDIATE")
        for table, column in _LOCATIONS:
            if column in [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]:
                moved += connection.execute(
                    f"UPDATE {table} SET {column} = :here || substr({column}, length(:there) + 1) "
                    f"WHERE {column} = :there OR substr({column}, 1, length(:there) + 1) = :there || '/'",
                    {"here": here, "there": there},
                ).rowcount
        for row, source in connection.execute("SELECT rowid, dataset_source FROM datasets").fetchall():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # somebody else's
                place = json.loads(source)["uri"]
                if isinstance(place, str) and place.startswith(f"{old_root}/"):
                    source = json.dumps({"uri": f"{root}{place.removeprefix(old_root)}"})
                    connection.execute(
                        "UPDATE datasets SET dataset_source = ? WHERE rowid = ?", (source, row)
                    )
        connection.execute("COMMIT")
        runs = [run for (run,) in connection.execute("SELECT run_uuid FROM runs")]
    left = [
        run for run in runs if not (artifacts / run).exists() and Path(f"{old_root}{below}", run).exists()
    ]
    rest = f" Artifacts of {len(left)} runs lie only in {old_root}{below}: copy them to {artifacts}."
    say(
        f"The workspace was at {old_root} before: {moved} locations in {database} now name {root}."
        + (rest if left else "")
    )


class _Found(NamedTuple):
    """What a database is: empty, whole as this version of MLflow makes one, with a user's records."""

    empty: bool
    whole: bool
    records: bool


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(database, timeout=BUSY_S, isolation_level=None)


def _look(connection: sqlite3.Connection) -> _Found:
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.db.utils import _get_latest_schema_revision  # imports every table's model, too

    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    found = connection.execute("SELECT version_num FROM alembic_version") if _REVISION in tables else ()
    newest = [_get_latest_schema_revision()] == [revision for (revision,) in found]
    records = any(
        connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()
        for table in _RECORDS
        if table in tables
    )
    return _Found(not tables - {_REVISION}, newest and set(Base.metadata.tables) <= tables, records)


def _replace(database: Path, found: _Found, artifacts: Path, say: Callable[[str], None]) -> None:
    """Put an upgraded copy in a database's place, or a new database in that of a half-made one.

    The old one is kept under another name, unless it was empty.
    """
    kept = database.with_name(f"{database.name}.before-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
    line = f"Upgraded the tracking store {database} for this version of MLflow; the old one is {kept.name}."
    with atomic_file(database) as new:
        try:
            _copy(database, new)
            _migrate(new, artifacts)
        except Exception as error:
            code = getattr(getattr(error, "orig", error), "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            if isinstance(error, OSError) or code not in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT):
                raise  # the disk, not what is in the database
            if "Can't locate revision" in str(error):
                raise UserError(
                    f"The tracking store {database} was made by a newer MLflow: update MLflow, or let "
                    "MLFLOW_TRACKING_URI name another store (none: go on untracked)."
                ) from None
            if found.records:
                raise UserError(
                    f"The tracking store {database} holds runs and was left half-upgraded by an interrupted "
                    "command: put a backup in its place, or move it away to begin another."
                ) from error
            line = (
                f"Made the tracking store {database} anew: an interrupted command had left it half-made and "
                f"without a run. What there was is {kept.name}."
            )
            _remove_logs(new)
            new.unlink(missing_ok=True)
            _migrate(new, artifacts)
        if not found.empty:
            try:
                os.link(database, kept)
            except OSError:  # a file system without links
                _copy(database, kept)
    _close_connections(database)
    if not found.empty:
        say(line)


def _copy(database: Path, target: Path) -> None:
    with contextlib.closing(_connect(database)) as old, contextlib.closing(_connect(target)) as copy:
        old.backup(copy)


def _migrate(database: Path, artifacts: Path) -> None:
    """Bring a database, which may be absent, to this version of MLflow, and make the product's experiment.

    It is a temporary file, which is synchronised once it is whole: hundreds of statements need not wait for
    the disk.
    """
    from mlflow.entities import ExperimentTag
    from mlflow.store.db import utils
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event

    uri = sqlite_uri(database)
    engine = utils.create_sqlalchemy_engine(uri)
    event.listen(engine, "connect", lambda made, _: made.execute("PRAGMA synchronous = OFF"))
    try:
        with warnings.catch_warnings(action="ignore"):  # alembic's, about older tables
            utils._initialize_tables(engine)
    finally:
        engine.dispose()
    try:
        store = SqlAlchemyStore(uri, file_uri(artifacts))
        if store.get_experiment_by_name(EXPERIMENT) is None:
            tags = [ExperimentTag(*tag) for tag in EXPERIMENT_TAGS.items()]
            store.create_experiment(EXPERIMENT, file_uri(artifacts), tags)
    finally:
        _close_connections(database)


def _close_connections(database: Path) -> None:
    """Close those connections to a database that MLflow keeps in this process."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engine = SqlAlchemyStore._engine_map.get(sqlite_uri(database))
    if engine is not None:
        engine.dispose()


def _remove_logs(database: Path) -> None:
    """Remove the logs of a database that is gone: SQLite would apply them to the next of its name."""
    for suffix in ("-journal", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
