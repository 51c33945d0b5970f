"""Getting one file from the Hub, so that nothing wrong, endless or half-written comes of it.

Files are streamed by hand into the cache of huggingface_hub, with its client: its own download trusts the
server's etag as a file name, never looks at the content, and waits minutes on a silent network. Here
everything ends within 30 s of the last progress, as a one-line ZooError.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from huggingface_hub import (
    HfFileMetadata,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session

from zoo.errors import IntegrityError, NoWeights, ZooError
from zoo.files import atomic, sha256_of
from zoo.progress import report, show
from zoo.repository import SHA256

T = TypeVar("T")

SIZE_LIMIT = 2 << 30  # bytes of one file
PATIENCE = 20.0  # seconds without `STEP` bytes of progress after which nothing is tried again
TIMEOUT = 6.0  # of one connection or one read; a request can need both, hence 20 + 6 < 30
WAITS = (1.0, 2.0)  # between the tries of one request
STEP = 1 << 16
LOCK_SECONDS = 600.0  # another process that fetches the same file makes progress or fails by itself

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
COMMIT = re.compile(r"[0-9a-f]{40}")
_TRANSIENT = (408, 429, 500, 502, 503, 504)


def download(
    repo: str, revision: str, filename: str, *, sha256: str | None = None, size_limit: int = SIZE_LIMIT
) -> Path:
    """One file of a repository at a commit, from the cache of huggingface_hub or over the network.

    The server's commit, etag and size are checked before the first byte; the content (against `sha256`
    and against the etag, which is its hash) before the file gets its name in the cache.

    Raises:
        NoWeights: the Hub refuses, has no such file, fails or is silent, each within 30 s.
        IntegrityError: what the Hub offers or sends is not what it should be.
        ZooError: a name is malformed, or the disk is full.
    """
    check_names(repo, revision, filename)
    what = f"{repo}@{revision[:8]}/{filename}"
    cached = try_to_load_from_cache(repo, filename, revision=revision)
    if isinstance(cached, str):
        if _is_genuine(Path(cached), sha256):
            return Path(cached)
        _forget(Path(cached))
    url = hf_hub_url(repo, filename, revision=revision)
    patience = Patience()
    metadata = patiently(lambda timeout: get_hf_file_metadata(url, timeout=timeout), what, patience)
    _check_metadata(metadata, revision, sha256, size_limit, what)
    try:
        return _store(url, metadata, (repo, revision, filename), sha256, patience)
    except OSError as error:
        raise disk_error(error, what) from error


def check_names(repo: str, revision: str, filename: str) -> None:
    """Refuse what is not org/name, a full commit and a plain file name: all three become parts of a path."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ZooError(f"{repo[:100]!r} is not a repository of the Hub; write org/name")
    if not COMMIT.fullmatch(revision):
        raise ZooError(f"{revision[:100]!r} is not a full commit; pin weights by its 40 hex digits")
    if not _FILE.fullmatch(filename) or ".." in filename:
        raise ZooError(f"{filename[:100]!r} is not a file of a repository of the zoo")


def _check_metadata(
    found: HfFileMetadata, revision: str, sha256: str | None, size_limit: int, what: str
) -> None:
    # The etag becomes a file name in the cache, so that nothing but hex digits may pass.
    if not found.etag or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", found.etag):
        raise IntegrityError(f"{what}: the server sends a malformed etag; check HF_ENDPOINT and your proxy")
    if found.commit_hash != revision:
        raise IntegrityError(
            f"{what}: the server answers for another commit; check HF_ENDPOINT and your proxy"
        )
    if sha256 is not None and len(found.etag) == 64 and found.etag != sha256:
        raise IntegrityError(
            f"{what}: the Hub offers another file (sha256 {found.etag[:12]}…) than the pinned "
            f"{sha256[:12]}…; update the plugin, or report it to its author"
        )
    if found.size is None or found.size > size_limit:
        raise IntegrityError(f"{what} has {found.size} bytes; at most {size_limit} are fetched")


def _store(
    url: str,
    metadata: HfFileMetadata,
    names: tuple[str, str, str],
    sha256: str | None,
    patience: Patience,
) -> Path:
    repo, revision, filename = names
    etag, size = str(metadata.etag), int(metadata.size or 0)
    folder = cache_folder(repo)
    blob = folder / "blobs" / etag
    lock = folder.parent / ".locks" / folder.name / f"{etag}.lock"
    for parent in (blob.parent, lock.parent):
        parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock, timeout=LOCK_SECONDS):
        for orphan in blob.parent.glob(f"{etag}*.incomplete"):
            orphan.unlink(missing_ok=True)
        if not blob.is_file() or not _is_genuine(blob, sha256):
            part = blob.with_name(f"{etag}.zoo.incomplete")
            try:
                _receive(url, part, size, f"{repo}@{revision[:8]}/{filename}", patience)
                if not _is_genuine(part, sha256, etag):
                    raise IntegrityError(
                        f"{repo}@{revision[:8]}/{filename} arrived with a wrong sha256 and was deleted; "
                        "try again, and check HF_ENDPOINT and your proxy if it stays"
                    )
                part.replace(blob)
            finally:
                part.unlink(missing_ok=True)
        return _link(blob, folder / "snapshots" / revision / filename)


def _receive(url: str, part: Path, size: int, what: str, patience: Patience) -> None:
    """Stream a file; a connection that breaks is taken up again where it broke."""
    with part.open("wb") as file, show(f"fetching {what}"):

        def attempt(timeout: float) -> None:
            headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
            if file.tell():
                headers["Range"] = f"bytes={file.tell()}-"
            with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
                if response.status_code >= 400:
                    raise HfHubHTTPError(f"status {response.status_code}", response=response)
                if not response.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
                    file.seek(0)
                    file.truncate()
                _copy(response.iter_raw(), file, size, what, patience)
            if file.tell() < size:
                raise ConnectionError("the connection ended early")

        patiently(attempt, what, patience)


def _copy(chunks: Iterator[bytes], file: BinaryIO, size: int, what: str, patience: Patience) -> None:
    for chunk in chunks:
        if file.tell() + len(chunk) > size:
            raise IntegrityError(f"{what}: the server sends more than the {size} bytes that it announced")
        file.write(chunk)
        file.flush()  # a full disk shows here and not when the file is closed
        patience.reached(file.tell())
        report(file.tell(), size)
        if patience.left() <= 0:
            raise NoWeights(f"{what} arrives too slowly; try again, or set ZOO_WEIGHTS to a local copy")


def _link(blob: Path, pointer: Path) -> Path:
    pointer.parent.mkdir(parents=True, exist_ok=True)
    with atomic(pointer) as temporary:
        temporary.unlink()
        try:
            temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:  # no links on this file system
            shutil.copyfile(blob, temporary)
    return pointer


def cache_folder(repo: str) -> Path:
    """Where huggingface_hub keeps the files of a repository."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _is_genuine(path: Path, sha256: str | None, etag: str = "") -> bool:
    """Whether a file is what its pin and its etag (the name of a blob in the cache) say."""
    etag = etag or path.resolve().name
    found = sha256_of(path)
    if sha256 is not None and found != sha256:
        return False
    if SHA256.fullmatch(etag):
        return found == etag
    return not COMMIT.fullmatch(etag) or _git_sha1(path) == etag


def _git_sha1(path: Path) -> str:
    """The hash by which git, and the Hub, name a file that is not in LFS."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _forget(pointer: Path) -> None:
    """Delete a bad file of the cache, and not only the link to it."""
    blob = pointer.resolve()
    pointer.unlink(missing_ok=True)
    if Path(constants.HF_HUB_CACHE).resolve() in blob.parents:
        blob.unlink(missing_ok=True)


class Patience:
    """The time left until a transfer must have made progress."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._mark = self._far = 0
        self.tries = 0

    def left(self) -> float:
        """Seconds of patience."""
        return PATIENCE - (time.monotonic() - self._start)

    def reached(self, position: int) -> None:
        """Note how far the transfer is; real progress brings new patience."""
        # A server that starts from zero again and again gets no nearer, and no more time.
        if position > self._far:
            self._far, self.tries = position, 0
        if position >= self._mark + STEP:
            self._mark, self._start = position, time.monotonic()


def patiently(action: Callable[[float], T], what: str, patience: Patience) -> T:
    """Run `action(timeout)`, again after a passing failure, for as long as there is patience."""
    patience.tries = 0
    while True:
        try:
            return action(max(0.1, min(TIMEOUT, patience.left())))
        except ZooError:
            raise
        except Exception as error:  # whatever the transport or the answer of a hostile server provokes
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            status = status_of(error)
            again = not isinstance(error, OfflineModeIsEnabled) and (status is None or status in _TRANSIENT)
            wait = WAITS[patience.tries] if patience.tries < len(WAITS) else None
            if not again or wait is None or patience.left() < wait + 2:
                raise explain(error, what) from error
            patience.tries += 1
            time.sleep(wait)


def bounded(action: Callable[[], T], what: str, seconds: float) -> T:
    """Run an action of huggingface_hub that has no time limit of its own.

    Raises:
        ZooError: it failed, or it is still at work after `seconds`; it is then left behind in its thread.
    """
    outcome: list[T] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            outcome.append(action())
        except Exception as error:  # handed to the thread that waits
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise explain(failure[0], what, ZooError) from failure[0]
    if not outcome:
        raise explain(TimeoutError(f"nothing within {seconds:.0f} s"), what, ZooError)
    return outcome[0]


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, where an answer came at all."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def explain(error: Exception, what: str, kind: type[ZooError] = NoWeights) -> ZooError:
    """One line for anything that the Hub, or the way to it, can answer."""
    status, otherwise = status_of(error), "or set ZOO_WEIGHTS to a folder that 'zoo pull' filled"
    if isinstance(error, OfflineModeIsEnabled):
        return kind(f"{what} is not in the cache and HF_HUB_OFFLINE is set; unset it once, {otherwise}")
    if status in (401, 403):
        return kind(
            f"{what}: the Hub refuses access ({status}); check the name, or log in with 'hf auth login'"
        )
    if status == 404:
        return kind(f"{what} is not on the Hub (404); check the name and the revision, or pass weights=PATH")
    if status == 412:
        return kind(f"{what} was changed by somebody else meanwhile (412); run the command again")
    if status == 429:
        return kind(f"{what}: too many requests (429); wait some minutes, set HF_TOKEN, {otherwise}")
    if status is not None:
        return kind(f"{what}: the Hub fails ({status}); try again later, {otherwise}")
    reason = f"{type(error).__name__} {(str(error).splitlines() or [''])[0][:100]}".strip()
    return kind(
        f"{what}: no proper answer from {constants.ENDPOINT} ({reason}); check the network, set "
        f"HF_HUB_OFFLINE=1 for files in the cache, {otherwise}"
    )


def disk_error(error: OSError, what: str) -> ZooError:
    """One line for a file that cannot be written."""
    reason = (
        "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    )
    return ZooError(f"cannot store {what}: {reason}; free some space or set HF_HOME to another disk")
