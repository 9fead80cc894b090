"""Whole objects on any fsspec store: published when they are complete, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import logging
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger(__name__)

# S3 takes parts of 5 MiB and more, 10 000 at most; fsspec's default would keep 50 MiB in memory.
PART_BYTES = 8 * 1024 * 1024

_TRIES = 100  # to create a file in a folder that others remove


class StoragePath(Protocol):
    """What is needed of a path: ``ObjectStoragePath`` and ``UPath`` have it."""

    @property
    def fs(self) -> AbstractFileSystem: ...
    @property
    def path(self) -> str: ...
    @property
    def protocol(self) -> str: ...


# DuckDB's name for a container of Azure: https://duckdb.org/docs/stable/core_extensions/azure
_URL_SCHEMES = {"": "file", "local": "file", "abfs": "az", "abfss": "az"}


def url_of(path: StoragePath) -> str:
    """Return the URL that DuckDB or Snowflake understand: without an Airflow connection in it."""
    return f"{_URL_SCHEMES.get(path.protocol, path.protocol)}://{path.path}"


# Other names of a store, of those that Airflow's providers register.
_SAME_STORES = {"local": "file", "s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs", "adl": "abfs", "az": "abfs"}


def place_of(dst: str) -> tuple[str, str, str]:
    """
    Return scheme, bucket and key of a folder: the same, whichever Airflow connection and spelling lead there.

    :param dst: folder URL or absolute path, as ``writers.check_dst`` lets it pass.
    """
    scheme, _, place = dst.partition("://") if "://" in dst else ("file", "", dst)
    scheme = _SAME_STORES.get(scheme.lower(), scheme.lower())
    bucket, _, key = place.partition("/")
    if scheme == "file":
        key = re.sub("/+", "/", key)
    return scheme, bucket.rpartition("@")[2], key.strip("/") if scheme == "file" else key.rstrip("/")


def _is_local(path: StoragePath) -> bool:
    return path.protocol in ("", "file", "local")


def _is_s3(path: StoragePath) -> bool:
    return path.protocol in ("s3", "s3a")


# ---- publishing --------------------------------------------------------------------------------


def publish(path: StoragePath) -> AbstractContextManager[IO[bytes]]:
    """Yield a stream whose content becomes the object at ``path`` when the block ends, and never when it raises."""
    if _is_local(path):
        return _publish_file(Path(path.path))
    if _is_s3(path):
        return _publish_upload(path)
    return _publish_copy(path)


@contextmanager
def _publish_upload(path: StoragePath) -> Iterator[IO[bytes]]:
    # fsspec publishes a partial object when a plain handle is left by an exception, or even collected as garbage.
    handle = path.fs.open(path.path, "wb", block_size=PART_BYTES, autocommit=False)
    try:
        yield handle
        handle.close()
        handle.commit()
    except BaseException:
        # s3fs fails to close a handle that was discarded first.
        for undo in (handle.close, handle.discard):
            with contextlib.suppress(Exception):
                undo()
        raise
    # Not before it is there: of two tries at once, each would end the other for ever.
    abort_uploads(path)


def abort_uploads(path: StoragePath, *, below: bool = False) -> None:
    """
    Abort the multipart uploads of an object that is there; a killed process has left them open, and they cost money.

    One that is still going on fails, and publishes nothing: it would have been the same object once more.

    :param below: those of all objects whose name begins with the path, instead.
    """
    if not _is_s3(path):
        return
    try:
        bucket, key, _ = path.fs.split_path(path.path)
        listed = path.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
        for upload in listed.get("Uploads", ()):
            name = upload["Key"]
            if name.startswith(key) if below else name == key:
                path.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=name, UploadId=upload["UploadId"])
    except Exception as error:
        # Not everybody who may write may list; then a lifecycle rule of the bucket is what ends them.
        log.info("Unfinished uploads of %s, if there are any, are left alone: %s", path, error)


def remove_tree(path: StoragePath) -> None:
    """Remove an object, or a folder with all in it and its parent where that is empty then; neither need be there."""
    path.fs.invalidate_cache(path.path)
    if _is_local(path):
        with contextlib.suppress(FileNotFoundError):
            path.fs.rm(path.path, recursive=True)
        with contextlib.suppress(OSError):  # what is in it is somebody else's
            Path(path.path).parent.rmdir()
        return
    # fsspec's rm takes * ? [ for a pattern, and that of s3fs tells nobody what it may not remove.
    with contextlib.suppress(FileNotFoundError):
        for found in path.fs.find(path.path):
            path.fs.rm_file(found)


@contextmanager
def _publish_copy(path: StoragePath) -> Iterator[IO[bytes]]:
    # Some stores publish whatever is closed (adlfs does, whatever autocommit says), so they get a whole file only.
    with tempfile.NamedTemporaryFile(prefix="unleash-") as spool:
        yield spool
        spool.flush()
        path.fs.put_file(spool.name, path.path)


@contextmanager
def _publish_file(target: Path) -> Iterator[IO[bytes]]:
    """Write a hidden sibling and rename it; fsspec's own staging is in the temporary folder, often another device."""
    made = _missing_folders(target.parent)
    _remove_abandoned(target)
    try:
        with _open_sibling(target) as staged:
            yield staged
            staged.flush()
            os.fsync(staged.fileno())
            Path(staged.name).replace(target)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # another task's object may be in it by now
                folder.rmdir()
        raise


def _missing_folders(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.parents) if not path.exists()]


@contextmanager
def _open_sibling(target: Path) -> Iterator[IO[bytes]]:
    """Yield a new file beside the target, and remove it if it is still there at the end."""
    with _create_sibling(target) as stream:
        try:
            yield stream
        finally:
            Path(stream.name).unlink(missing_ok=True)


def _create_sibling(target: Path) -> IO[bytes]:
    """Create a locked file beside the target; the lock tells that somebody is writing it."""
    for _ in range(_TRIES):
        staged = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        # Another task may remove the folder after its failure, and this file, before it is locked, as abandoned.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            target.parent.mkdir(parents=True, exist_ok=True)
            stream = staged.open("xb")
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            if staged.exists():
                return stream
            stream.close()
    target.parent.mkdir(parents=True, exist_ok=True)
    return staged.open("xb")


def _remove_abandoned(target: Path) -> None:
    """Remove what a killed process left of this object."""
    with contextlib.suppress(FileNotFoundError):  # another task removed the folder after its failure
        for staged in list(target.parent.glob(f".{glob.escape(target.name)}.*.tmp")):
            with contextlib.suppress(OSError), staged.open("r+b") as stream:  # NFS locks only who may write
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                staged.unlink()
