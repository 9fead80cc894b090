"""Objects on any fsspec store: published whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import io
import logging
import os
import re
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import unquote

from airflow_provider_unleash.exceptions import InvalidArgumentError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger(__name__)

# S3 allows 10 000 parts of at least 5 MiB. fsspec's default would keep 50 MiB in memory.
PART_BYTES = 8 * 1024 * 1024

_MAX_CREATE_ATTEMPTS = 100
# On file systems without locks. A living writer does not pause for a day; if it does, its task fails and is retried.
_ABANDONED_SECONDS = 24 * 3600
# Errors about a path itself: something else is in its place or above it, or it is too long. No retry cures them.
_PATH_ERRORS = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EILSEQ, errno.ELOOP)
# Network file systems such as CIFS and FUSE answer this if they cannot flush a file or a folder.
_CANNOT_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


class Store(NamedTuple):
    """
    A kind of store.

    :param name: its usual scheme.
    :param url_scheme: the scheme that DuckDB reads.
    :param extra: the extra that installs its file system; only stores with buckets have one.
    """

    name: str
    url_scheme: str
    extra: str | None = None


# By scheme; any other is a store of its own. DuckDB's az: https://duckdb.org/docs/stable/core_extensions/azure
_STORES = {
    **dict.fromkeys(("file", "local", ""), Store("file", "file")),
    **dict.fromkeys(("s3", "s3a"), Store("s3", "s3", "s3")),
    **dict.fromkeys(("gs", "gcs"), Store("gs", "gs", "gcs")),
    **dict.fromkeys(("abfs", "abfss", "adl", "az"), Store("abfs", "az", "azure")),
}


class StoragePath(Protocol):
    """The attributes used of a path; ``ObjectStoragePath`` and ``UPath`` have them."""

    @property
    def fs(self) -> AbstractFileSystem: ...
    @property
    def path(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    def __truediv__(self, name: str) -> StoragePath: ...


def split_dst(dst: str) -> tuple[str, Store, str]:
    """Return the scheme of a folder's URL or path, its store, and what follows the scheme."""
    scheme, _, place = dst.partition("://") if "://" in dst else ("file", "", dst)
    return scheme, store_of(scheme), place


def split_bucket(place: str) -> tuple[str, str]:
    """Return the Airflow connection and the bucket at the start of what follows the scheme; both may be empty."""
    conn_id, _, bucket = place.partition("/")[0].rpartition("@")
    return conn_id, bucket


def store_of(scheme: str) -> Store:
    return _STORES.get(scheme.lower(), Store(scheme.lower(), scheme.lower()))


def check_dst(dst: str) -> None:
    scheme, store, place = split_dst(dst)
    conn_id, bucket = split_bucket(place)
    problem = None
    # After two slashes, ObjectStoragePath would use the current folder.
    if not re.fullmatch("[A-Za-z][A-Za-z0-9+.-]*", scheme) or (store.name == "file" and not re.match("/(?!/)", place)):
        problem = "is not a URL or absolute path"
    elif re.search(r"[?#]/*$|\?#", place):
        problem = "ends in ? or #, or contains ?#, which ObjectStoragePath leaves out"
    elif ":" in conn_id:
        problem = "contains a user name and password instead of the id of an Airflow connection"
    elif "://" in place:
        problem = "contains two URLs"
    elif not dst.isprintable() or dst != dst.strip():
        problem = "contains control or invisible characters, or starts or ends with white space"
    elif store.extra and not bucket:
        problem = "has no bucket"
    elif store.extra and not re.fullmatch(r"[A-Za-z0-9._-]+|arn:[A-Za-z0-9:._-]+", bucket):
        problem = "has a bucket with characters that no store allows"
    elif {".", ".."} & set(re.split(r"[/\\@]", unquote(place))):
        problem = "contains a dot segment, which leads elsewhere"
    if problem:
        shown = "dst" if re.search(":.*@", place, re.DOTALL) else f"dst={dst!r}"  # there may be a password
        raise InvalidArgumentError(
            f"{shown} {problem}; expected for example s3://aws_default@lake/unleash", argument="dst"
        )


def url_of(path: StoragePath) -> str:
    """Return the URL that DuckDB or Snowflake reads: without an Airflow connection."""
    return f"{store_of(path.protocol).url_scheme}://{path.path}"


def place_of(dst: str) -> tuple[str, str, str]:
    """Return scheme, bucket and key of a folder, whichever Airflow connection and spelling lead there."""
    _, store, place = split_dst(dst)
    _, bucket = split_bucket(place)
    key = place.partition("/")[2]
    key = re.sub("/+", "/", key).strip("/") if store.name == "file" else key.rstrip("/")
    return store.name, bucket, key


def publish(path: StoragePath) -> AbstractContextManager[IO[bytes]]:
    """Yield a stream. When the block ends, its content becomes the object; if it raises, nothing changes."""
    if store_of(path.protocol).name == "file":
        return _publish_file(Path(path.path))
    if store_of(path.protocol).name == "s3":
        return _publish_upload(path)
    return _publish_copy(path)


class _Upload(io.RawIOBase):
    """The bytes of one S3 object: one request if they fit into one part, else a multipart upload."""

    def __init__(self, path: StoragePath) -> None:
        self._path = path
        self._buffer = io.BytesIO()
        self._size = 0
        self._multipart: Any = None

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        size = len(data)
        if self._multipart is None and self._size + size > PART_BYTES:
            # autocommit=False, because fsspec otherwise publishes a partial object after an exception or garbage
            # collection.
            self._multipart = self._path.fs.open(self._path.path, "wb", block_size=PART_BYTES, autocommit=False)
            self._multipart.write(self._buffer.getvalue())
            self._buffer = io.BytesIO()
        (self._multipart or self._buffer).write(data)
        self._size += size
        return size

    def publish(self) -> None:
        if self._multipart is None:
            self._path.fs.pipe_file(self._path.path, self._buffer.getvalue())
            return
        self._multipart.close()
        self._multipart.commit()
        # Abort only after publishing; otherwise concurrent attempts abort each other.
        abort_uploads(self._path)

    def discard(self) -> None:
        if self._multipart is not None:
            for undo in (self._multipart.close, self._multipart.discard):  # s3fs cannot close a discarded handle
                with suppress(Exception):
                    undo()


@contextmanager
def _publish_upload(path: StoragePath) -> Iterator[IO[bytes]]:
    upload = _Upload(path)
    try:
        yield upload  # type: ignore[misc]  # typeshed does not see that it is an IO[bytes]
        upload.publish()
    except BaseException:
        upload.discard()
        raise


def abort_uploads(path: StoragePath, *, below: bool = False) -> None:
    """
    Abort the open multipart uploads of an object that is published: those of killed processes, which cost money.

    An upload that is still in progress fails and publishes nothing; it would have written the same object again. With
    ``below``, abort the uploads of all objects whose name starts with the path.
    """
    if store_of(path.protocol).name != "s3":
        return
    try:
        bucket, key, _ = path.fs.split_path(path.path)
        listed = path.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
        for upload in listed.get("Uploads", ()):
            name = upload["Key"]
            if name.startswith(key) if below else name == key:
                path.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=name, UploadId=upload["UploadId"])
    except Exception as error:
        # Not everyone who may write may list uploads. A lifecycle rule of the bucket can end them.
        log.info("Cannot abort unfinished uploads of %s: %s", path, error)


@contextmanager
def _publish_copy(path: StoragePath) -> Iterator[IO[bytes]]:
    # Some stores (adlfs) publish whatever is closed, even with autocommit=False, so upload complete files only.
    with tempfile.NamedTemporaryFile(prefix="unleash-") as copy:
        yield copy
        copy.flush()
        path.fs.put_file(copy.name, path.path)


@contextmanager
def _publish_file(target: Path) -> Iterator[IO[bytes]]:
    """Write a hidden sibling and rename it. fsspec would write to the temporary folder, often another device."""
    target = Path(os.path.realpath(target))  # renaming to a symlink would replace it
    with _explaining(target):
        if target.exists() and not target.is_file():
            raise FileExistsError(errno.EEXIST, "it is not a file")
        created = [path for path in (target.parent, *target.parent.parents) if not path.exists()]
        _remove_abandoned(target)
    try:
        with _open_sibling(target) as sibling:
            _copy_owner_and_mode(target, sibling.fileno())
            yield sibling
            sibling.flush()
            _fsync(sibling.fileno())
            Path(sibling.name).replace(target)
        for folder in (target.parent, *(path.parent for path in created)):
            _fsync_folder(folder)
    except BaseException:
        for folder in created:
            with suppress(OSError):  # another task may have written to it
                folder.rmdir()
        raise


@contextmanager
def _explaining(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _PATH_ERRORS:
            raise
        raise InvalidArgumentError(
            f"Cannot write {target}: {error.strerror}. Remove what is in its place, or use another dst",
            argument="dst",
            path=str(target),
        ) from None


@contextmanager
def _open_sibling(target: Path) -> Iterator[IO[bytes]]:
    with _explaining(target):
        stream = _create_sibling(target)
    with stream:
        try:
            yield stream
        finally:
            Path(stream.name).unlink(missing_ok=True)


def _create_sibling(target: Path) -> IO[bytes]:
    """Create a file in the same folder, locked to show that a process is writing it."""
    for _ in range(_MAX_CREATE_ATTEMPTS):
        sibling = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        # A failed task may remove the folder, and a new task this file before it is locked.
        with suppress(FileNotFoundError, FileExistsError):
            target.parent.mkdir(parents=True, exist_ok=True)
            stream = sibling.open("xb")
            with suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            if sibling.exists():
                return stream
            stream.close()
    target.parent.mkdir(parents=True, exist_ok=True)
    return sibling.open("xb")


def _copy_owner_and_mode(target: Path, descriptor: int) -> None:
    with suppress(FileNotFoundError):
        existing = target.stat()
        # Owner and group one by one: only root may change the owner. The mode last: changing the owner clears bits.
        for change in (
            partial(os.fchown, descriptor, existing.st_uid, -1),
            partial(os.fchown, descriptor, -1, existing.st_gid),
            partial(os.fchmod, descriptor, stat.S_IMODE(existing.st_mode)),
        ):
            with suppress(OSError):
                change()


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FSYNC:
            raise


def _fsync_folder(folder: Path) -> None:
    """Make a rename in it survive a power failure."""
    # It may be writable but not readable, or another try may have removed it.
    with suppress(PermissionError, FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_abandoned(target: Path) -> None:
    with suppress(FileNotFoundError):  # a failed task removed the folder
        for sibling in list(target.parent.glob(f".{glob.escape(target.name)}.*.tmp")):
            with suppress(OSError):
                _remove_if_abandoned(sibling)


def _remove_if_abandoned(sibling: Path) -> None:
    try:
        with sibling.open("r+b") as stream:  # NFS only locks files that are open for writing
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # While it is locked: its writer may be about to lock it, and then looks whether it is still there.
            sibling.unlink()
    except BlockingIOError:
        pass
    except OSError:  # a file system without locks, or a file that is not writable
        if time.time() - sibling.stat().st_mtime > _ABANDONED_SECONDS:
            sibling.unlink()


def check_is_folder(path: StoragePath) -> None:
    """Check that a local folder exists or can be created."""
    if store_of(path.protocol).name == "file":
        folder = Path(path.path)
        with _explaining(folder):
            existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir():
            raise InvalidArgumentError(f"dst={str(path)!r} cannot be used: {existing} is not a folder", argument="dst")


def list_names(folder: StoragePath) -> list[str]:
    """Return the names in a folder, or none if it does not exist."""
    folder.fs.invalidate_cache(folder.path)
    try:
        return [str(found).rstrip("/").rpartition("/")[2] for found in folder.fs.ls(folder.path, detail=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_tree(path: StoragePath) -> None:
    """Remove an object or a folder with its content, and the parent if that leaves it empty; they may not exist."""
    path.fs.invalidate_cache(path.path)
    if store_of(path.protocol).name == "file":
        with suppress(FileNotFoundError):
            path.fs.rm(path.path, recursive=True)
        with suppress(OSError):  # not empty
            Path(path.path).parent.rmdir()
        return
    # fsspec's rm expands * ? [ as patterns, and s3fs's ignores objects that it may not remove.
    with suppress(FileNotFoundError):
        for found in path.fs.find(path.path):
            path.fs.rm_file(found)
