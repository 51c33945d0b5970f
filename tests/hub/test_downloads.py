"""Downloads from a local Hub that huggingface_hub's own client talks to: cut, stalled, hostile, offline."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
from hub_pieces import NAME, REPO, WEIGHTS, blobs, cache, one_line, payload
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo import hub, transport
from zoo.errors import IntegrityError, NoWeights, ZooError


def test_a_pinned_file_is_fetched_once_and_then_needs_no_request(local, published, folder):
    path = hub.fetch(NAME)
    assert path.read_bytes() == (folder / WEIGHTS).read_bytes()
    before = len(local.requests)
    assert hub.fetch(NAME) == path
    assert len(local.requests) == before
    assert all(published in p for _, p, _ in local.requests)  # the revision, never a branch


def test_an_older_revision_stays_what_it_was(local):
    data = [payload(3200), payload(6400)]
    first, second = (local.add("org/x", {WEIGHTS: d}) for d in data)
    assert hub.download("org/x", first, WEIGHTS).read_bytes() == data[0]
    assert hub.download("org/x", second, WEIGHTS).read_bytes() == data[1]


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
def test_a_cut_download_goes_on_where_it_broke(local, reset):
    data = payload()
    commit = local.add("org/x", {WEIGHTS: data})
    local.fault(cut=100_000, reset=reset, times=2)
    assert hub.download("org/x", commit, WEIGHTS).read_bytes() == data
    ranges = [h["Range"] for m, _, h in local.requests if m == "GET" and "Range" in h]
    assert ranges
    if not reset:  # after an RST the client may lose what was in flight
        assert ranges == ["bytes=100000-", "bytes=200000-"]


def test_a_download_that_gets_further_each_time_survives_any_number_of_cuts(local):
    data = payload()
    commit = local.add("org/x", {WEIGHTS: data})
    local.fault(cut=40_000)
    assert hub.download("org/x", commit, WEIGHTS).read_bytes() == data
    assert local.count("GET") == 8


def test_a_download_that_is_cut_for_ever_ends_and_leaves_nothing(local):
    commit = local.add("org/x", {WEIGHTS: payload()})
    local.fault(cut=0)
    with pytest.raises(NoWeights) as info:
        hub.download("org/x", commit, WEIGHTS)
    one_line(info, "RemoteProtocolError", "HF_HUB_OFFLINE")
    assert blobs() == []
    assert local.count("GET") == 3


def test_a_stalling_body_ends(local):
    commit = local.add("org/x", {WEIGHTS: payload()})
    local.fault(slow=0.5)
    start = time.monotonic()
    with pytest.raises(NoWeights):
        hub.download("org/x", commit, WEIGHTS)
    assert time.monotonic() - start < 6
    assert blobs() == []


def test_a_body_that_drips_ends(local, monkeypatch):
    monkeypatch.setattr(transport, "PATIENCE", 1.0)
    commit = local.add("org/x", {WEIGHTS: payload()})
    local.fault(slow=0.1)
    start = time.monotonic()
    with pytest.raises(NoWeights) as info:
        hub.download("org/x", commit, WEIGHTS)
    one_line(info, "too slowly")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize(
    ("status", "tries", "words"),
    [(401, 1, "auth login"), (404, 1, "404"), (429, 3, "429"), (500, 3, "500"), (503, 3, "503")],
)
def test_a_status_for_ever_is_an_error_after_few_tries(local, method, status, tries, words):
    commit = local.add("org/x", {WEIGHTS: payload()})
    local.fault(method=method, status=status, headers={"Retry-After": "300"})
    with pytest.raises(NoWeights) as info:
        hub.download("org/x", commit, WEIGHTS)
    one_line(info, words)
    assert local.count(method) == tries
    assert blobs() == []


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [429, 500])
def test_a_passing_status_is_tried_again(local, method, status):
    data = payload()
    commit = local.add("org/x", {WEIGHTS: data})
    local.fault(method=method, status=status, times=2)
    assert hub.download("org/x", commit, WEIGHTS).read_bytes() == data


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_silent_server_is_an_error(local, method):
    commit = local.add("org/x", {WEIGHTS: payload()})
    local.fault(method=method, hang=True)
    with pytest.raises(NoWeights) as info:
        hub.download("org/x", commit, WEIGHTS)
    one_line(info, "check the network", "ZOO_WEIGHTS")
    assert blobs() == []


def test_a_refused_connection_is_an_error(local, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(transport, "hf_hub_url", lambda *a, **k: "http://127.0.0.1:1/x/resolve/y/z")
    with pytest.raises(NoWeights) as info:
        hub.download("org/x", "a" * 40, WEIGHTS)
    one_line(info, "127.0.0.1:1")


@pytest.mark.parametrize("spent", ["connect", "both"])
def test_no_failure_takes_longer_than_30_seconds(monkeypatch, spent):
    """With the true constants and a clock that only sleeps and time-outs move."""
    monkeypatch.undo()
    now = [0.0]
    monkeypatch.setattr(transport.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(transport.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    calls = []

    def silent(timeout):
        calls.append(timeout)
        now[0] += timeout * (2 if spent == "both" else 1)
        raise TimeoutError

    with pytest.raises(NoWeights):
        transport.patiently(silent, "x", transport.Patience())
    assert now[0] < 30
    assert len(calls) >= 2
    # A file whose metadata took long, and whose body is then silent, has the same 30 seconds.
    start, patience = now[0], transport.Patience()
    now[0] += 15.0
    with pytest.raises(NoWeights):
        transport.patiently(silent, "x", patience)
    assert now[0] - start < 30


def test_a_server_that_restarts_from_zero_gets_no_new_patience(monkeypatch):
    monkeypatch.undo()
    now = [0.0]
    monkeypatch.setattr(transport.time, "monotonic", lambda: now[0])
    patience = transport.Patience()
    patience.reached(100_000)
    for _ in range(30):
        now[0] += 1
        patience.reached(90_000)
    assert patience.left() < 0


@pytest.mark.parametrize(
    "etag", ['"../../../evil"', '"/tmp/evil"', '"abc"', "", '"' + "A" * 40 + '"', '"' + "g" * 64 + '"']
)
def test_a_hostile_etag_writes_nothing_anywhere(local, tmp_path, etag):
    commit = local.add("org/x", {"config.json": b"{}"})
    headers = {"ETag": etag, "X-Linked-Etag": etag} if etag else {"ETag": ""}
    local.fault(method="HEAD", headers=headers)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(IntegrityError) as info:
        hub.download("org/x", commit, "config.json")
    one_line(info, "etag")
    assert sorted(tmp_path.rglob("*")) == before
    assert local.count("GET") == 0


@pytest.mark.parametrize("commit", ["../../evil", "b" * 40])
def test_an_answer_for_another_commit_is_refused(local, commit):
    real = local.add("org/x", {WEIGHTS: payload()})
    local.fault(method="HEAD", headers={"X-Repo-Commit": commit})
    with pytest.raises(IntegrityError) as info:
        hub.download("org/x", real, WEIGHTS)
    one_line(info, "another commit")
    assert blobs() == []


def test_the_pin_is_compared_with_the_servers_etag_before_downloading(local):
    commit = local.add("org/x", {WEIGHTS: payload()})
    with pytest.raises(IntegrityError) as info:
        hub.download("org/x", commit, WEIGHTS, sha256="0" * 64)
    one_line(info, "pinned")
    assert local.count("GET") == 0


def test_the_size_is_compared_before_downloading(local):
    commit = local.add("org/x", {WEIGHTS: payload()})
    with pytest.raises(IntegrityError) as info:
        hub.download("org/x", commit, WEIGHTS, size_limit=1000)
    one_line(info, "at most 1000")
    assert local.count("GET") == 0


def test_more_bytes_than_announced_are_not_written(local):
    data = payload()
    commit = local.add("org/x", {WEIGHTS: data})
    local.fault(method="HEAD", headers={"X-Linked-Size": "1000"})
    with pytest.raises(IntegrityError) as info:
        hub.download("org/x", commit, WEIGHTS)
    one_line(info, "more than the 1000 bytes")
    assert blobs() == []


@pytest.mark.parametrize("filename", [WEIGHTS, "config.json"], ids=["lfs", "regular"])
@pytest.mark.parametrize("pinned", [True, False])
def test_a_flipped_byte_on_the_way_never_reaches_the_cache(local, filename, pinned):
    data = payload()
    commit = local.add("org/x", {filename: data})
    fault = local.fault(flip=1234)
    sha256 = hashlib.sha256(data).hexdigest() if pinned else None
    with pytest.raises(IntegrityError) as info:
        hub.download("org/x", commit, filename, sha256=sha256)
    one_line(info, "wrong sha256")
    assert blobs() == []
    fault.times = 0
    assert hub.download("org/x", commit, filename, sha256=sha256).read_bytes() == data


def test_a_bad_blob_in_the_cache_is_deleted_and_fetched_again(local, published, folder):
    blob = hub.fetch(NAME).resolve()
    good = blob.read_bytes()
    blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    local.fault(status=500)
    with pytest.raises(NoWeights):
        hub.fetch(NAME)
    assert not blob.exists()
    local.faults.clear()
    assert hub.fetch(NAME).read_bytes() == good


@pytest.mark.parametrize(
    ("repo", "revision", "filename"),
    [
        ("../x", "a" * 40, WEIGHTS),
        ("org/..", "a" * 40, WEIGHTS),
        ("org/a--b", "a" * 40, WEIGHTS),
        ("org/x/y", "a" * 40, WEIGHTS),
        ("org/x", "main", WEIGHTS),
        ("org/x", "../" * 13 + "a", WEIGHTS),
        ("org/x", "a" * 40, "../evil"),
        ("org/x", "a" * 40, "/etc/passwd"),
        ("org/x", "a" * 40, "a/b"),
        ("org/x", "a" * 40, "a\\b"),
    ],
)
def test_names_that_could_leave_the_cache_are_refused(local, repo, revision, filename):
    with pytest.raises(ZooError) as info:
        hub.download(repo, revision, filename)
    one_line(info)
    assert local.requests == []
    assert blobs() == []


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_a_repository_or_a_zoo_error(repo, revision):
    try:
        transport.check_names(repo, revision or "a" * 40, WEIGHTS)
    except ZooError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert repo.isascii()
        assert repo.count("/") == 1
    assert "\n" not in refusal


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_nothing(local, monkeypatch, code):
    data = payload()
    commit = local.add("org/x", {WEIGHTS: data})
    reached = transport.Patience.reached

    def full(self, position):
        if position > 50_000:
            raise OSError(code, os.strerror(code))
        reached(self, position)

    with monkeypatch.context() as patch:
        patch.setattr(transport.Patience, "reached", full)
        with pytest.raises(ZooError) as info:
            hub.download("org/x", commit, WEIGHTS)
    one_line(info, "disk is full", "HF_HOME")
    assert blobs() == []
    assert local.count("GET") == 1
    assert hub.download("org/x", commit, WEIGHTS).read_bytes() == data


CHILD = """
import sys
from huggingface_hub import constants
constants.HF_HUB_CACHE = sys.argv[1]
from zoo.transport import download
print("ready", flush=True)
try:
    print(download(*sys.argv[2:5]), flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


def child(*arguments, **environment):
    command = [sys.executable, "-c", CHILD, str(cache()), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})


def test_after_a_kill_the_next_download_starts_cleanly(local):
    data = payload()
    commit = local.add("org/x", {WEIGHTS: data})
    fault = local.fault(slow=0.2)
    process = child("org/x", commit, WEIGHTS)
    deadline = time.monotonic() + 30
    while not any(p.stat().st_size > 2000 for p in cache().rglob("*.incomplete")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert list(cache().rglob("*.incomplete"))
    # What huggingface_hub itself would have left.
    etag = hashlib.sha256(data).hexdigest()
    orphan = next(cache().rglob("*.incomplete")).with_name(f"{etag}.0a1b2c3d.incomplete")
    orphan.write_bytes(b"half")
    fault.times = 0
    assert hub.download("org/x", commit, WEIGHTS).read_bytes() == data
    assert blobs() == [etag]


def test_offline_uses_the_cache_and_says_what_is_missing(local):
    data = payload()
    commit = local.add("org/x", {WEIGHTS: data, "config.json": b"{}"})
    path = hub.download("org/x", commit, WEIGHTS)
    requests = len(local.requests)
    process = child("org/x", commit, WEIGHTS, HF_HUB_OFFLINE="1")
    assert process.communicate(timeout=60)[0].split() == ["ready", str(path)]
    out = child("org/x", commit, "config.json", HF_HUB_OFFLINE="1").communicate(timeout=60)[0]
    assert "NoWeights" in out
    assert "HF_HUB_OFFLINE" in out
    assert len(local.requests) == requests


def test_offline_a_branch_is_what_it_was(local, published, monkeypatch):
    from huggingface_hub import constants

    folder = hub.open_repository(f"hf-hub:{REPO}")
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    assert hub.open_repository(f"hf-hub:{REPO}") == folder
    with pytest.raises(NoWeights) as info:
        hub.open_repository("hf-hub:org/other")
    one_line(info, "HF_HUB_OFFLINE")
