"""The index of finished runs on disk, and the folder that one process at a time has for its runs."""

import json
import logging
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from timeripple.inspection.probe import Inspection

logger = logging.getLogger(__name__)
FOLDER = "index"
"""Beside the folders of runs; whoever serves those must not serve this one: ids are what keeps results apart."""
COLUMNS = "id text primary key, visitor text, settings text, result text, bytes int, at real"
NAMES = ", ".join(column.split()[0] for column in COLUMNS.split(", "))
TABLE = f"create table if not exists runs ({COLUMNS})"
CLAIMING = 60  # seconds to wait for others, which claim or remove what is left over


def claim(parent: Path) -> "Index":
    """The index, below `parent`, of a folder that no living process has: with the finished runs that an earlier one
    left there, or new. Folders that are left over are removed. Raises OSError, one sentence, where that cannot be."""
    (parent / FOLDER).mkdir(parents=True, exist_ok=True)
    with closing(_alone(parent / FOLDER / "claims.sqlite")):  # what seems left over may be about to be another's
        mine, number = None, 0
        while mine is None:
            (folder := parent / f"runs-{number}").mkdir(exist_ok=True)
            mine, number = _open(_of(folder)), number + 1
        alone = number == 1
        for other in parent.iterdir():
            if other != folder and re.fullmatch(r"runs-\d+", other.name):
                if left := _open(_of(other)):
                    left.close()
                    shutil.rmtree(other, ignore_errors=True)
                    _of(other).unlink(missing_ok=True)
                else:
                    alone = False
    return Index(folder, mine, alone)


def _of(folder: Path) -> Path:
    """Where the index of a folder lies: beside it, as what is in it is served to who knows its name."""
    return folder.parent / FOLDER / f"{folder.name}.sqlite"


def _alone(path: Path) -> sqlite3.Connection:
    """A connection that others wait for until it is closed. Raises OSError where they waited in vain."""
    connection = sqlite3.connect(path, timeout=CLAIMING, isolation_level=None)
    try:
        connection.execute("begin exclusive")
        return connection
    except sqlite3.DatabaseError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_NOTADB:
            path.unlink()
            return _alone(path)
        raise OSError(f"{path} cannot be locked: {error}.") from error


def _open(path: Path) -> sqlite3.Connection | None:
    """A connection that no other process can have at the same time, None where one has it; the lock goes with the
    process, however it ends. What is no index, or of another version, is made anew."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("pragma locking_mode = exclusive")
        connection.execute("begin exclusive")
        connection.execute(TABLE)
        connection.execute(f"select {NAMES} from runs limit 0")
        connection.execute("commit")
        return connection
    except sqlite3.DatabaseError as error:
        connection.close()
        kind = error.sqlite_errorcode & 0xFF
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return None
        if kind in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            path.unlink()
            return _open(path)
        raise OSError(f"{path} cannot be written: {error}.") from error


class Index:
    """Finished runs of a folder, see `claim`. Not for several threads at once. A full disk costs a run its place in the
    index, never the run.

    alone: whether no other process had a folder beside this one when it was claimed.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, alone: bool):
        self.folder, self.alone, self._connection = folder, alone, connection

    def add(self, run) -> None:
        """Notes a run with its result, an `Inspection` or what JSON can hold."""
        try:
            values = run.id, run.visitor, json.dumps(run.settings), _packed(run.result), run.bytes, run.changed_at
            self._connection.execute("insert or replace into runs values (?, ?, ?, ?, ?, ?)", values)
        except (sqlite3.Error, TypeError, ValueError, OSError):
            logger.exception("a finished run will not survive a restart")

    def remove(self, id: str) -> None:
        try:
            self._connection.execute("delete from runs where id = ?", (id,))
        except sqlite3.Error:
            logger.exception("the index could not be written")

    def kept(self) -> list[dict[str, Any]]:
        """Runs of which the folder is there, oldest first; entries without a folder and folders without an entry are
        removed."""
        rows = []
        found = self._connection.execute("select * from runs order by at").fetchall()
        for id, visitor, settings, result, size, at in found:
            try:
                folder = self.folder / id
                if not folder.is_dir():
                    raise ValueError("its folder is gone")
                kept = {"id": id, "visitor": visitor, "settings": tuple(json.loads(settings)), "bytes": size}
                rows.append(kept | {"result": _unpacked(result, folder), "changed_at": at})
            except (ValueError, TypeError, KeyError, OSError):
                self.remove(id)
        names = {row["id"] for row in rows}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in names:
                shutil.rmtree(path, ignore_errors=True)
        return rows

    def close(self) -> None:
        self._connection.close()


def _packed(result: Any) -> str:
    if isinstance(result, Inspection):
        result.save()
        return json.dumps({"inspection": True})
    return json.dumps({"result": result})


def _unpacked(text: str, folder: Path) -> Any:
    values = json.loads(text)
    if "inspection" not in values:
        return values["result"]
    return Inspection.load(folder)
