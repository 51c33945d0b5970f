"""Downloads, repositories and publishing, against a local Hub that huggingface_hub's own client talks to."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo
from zoo import cards, hub, transport
from zoo.errors import IntegrityError, NoWeights, ZooError
from zoo.files import sha256_of
from zoo.grammar import Name
from zoo.registry import registry
from zoo.repository import read_config
from zoo.spec import Weights
from zoo.weights import load_into, save_state

NAME = Name("tiny-test", "at_dots")
REPO = "org/tiny_test.at_dots"
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(transport, "WAITS", (0.01, 0.02))
    monkeypatch.setattr(transport, "TIMEOUT", 0.4)
    monkeypatch.setattr(transport, "PATIENCE", 3.0)


@pytest.fixture
def folder(tiny_registry, tmp_path):
    """A staged card folder."""
    torch.manual_seed(0)
    return cards.stage(NAME, zoo.load(str(NAME), pretrained=False), [], tmp_path / "staged")


@pytest.fixture
def published(local, folder):
    """The commit of that folder on the local Hub, pinned."""
    commit = local.add(REPO, contents(folder))
    pin(Weights(sha256=sha256_of(folder / WEIGHTS), repo=REPO, revision=commit))
    return commit


@pytest.fixture
def local(hub):
    return hub


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pin(weights):
    registry().plugins[0].weights[str(NAME)] = weights


def cache():
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def blobs():
    """Every file of the cache that could hold content."""
    return sorted(
        p.name for p in cache().rglob("*") if p.is_file() and not p.is_symlink() and p.suffix != ".lock"
    )


def one_line(info, *words):
    text = str(info.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def payload(size=300_000):
    return b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(size // 32))


# Downloads


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


# Weights of a name: mirror, bundle, Hub


def test_the_mirror_comes_before_the_hub(local, published, folder, monkeypatch):
    monkeypatch.setenv("ZOO_WEIGHTS", str(folder.parent))
    assert hub.fetch(NAME) == folder / WEIGHTS
    assert local.requests == []


def test_the_bundle_comes_after_the_mirror(local, published, folder, monkeypatch, tmp_path):
    monkeypatch.setattr("zoo.catalogue._cards_dir", lambda: str(folder.parent))
    assert hub.fetch(NAME) == folder / WEIGHTS
    mirror = tmp_path / "mirror"
    hub.pull(NAME, mirror)
    monkeypatch.setenv("ZOO_WEIGHTS", str(mirror))
    assert hub.fetch(NAME) == mirror / str(NAME) / WEIGHTS


@pytest.mark.parametrize("pinned", [True, False])
def test_a_flipped_byte_in_a_local_file_is_named(local, folder, monkeypatch, pinned):
    if pinned:
        pin(Weights(sha256=sha256_of(folder / WEIGHTS)))
    monkeypatch.setenv("ZOO_WEIGHTS", str(folder.parent))
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    for load in (
        lambda: hub.fetch(NAME),
        lambda: zoo.load(str(NAME)),
        lambda: zoo.load(f"local-dir:{folder}"),
    ):
        with pytest.raises(IntegrityError) as info:
            load()
        one_line(info, str(folder / WEIGHTS), "fetch it again")


def test_a_local_folder_without_pin_or_config_is_refused(local, folder, monkeypatch):
    monkeypatch.setenv("ZOO_WEIGHTS", str(folder.parent))
    (folder / "config.json").unlink()
    with pytest.raises(IntegrityError) as info:
        hub.fetch(NAME)
    one_line(info, "config.json", "zoo pull")


def test_no_weights_says_how_to_get_some(local, tiny_registry):
    with pytest.raises(NoWeights) as info:
        zoo.load(str(NAME))
    one_line(info, f"zoo train {NAME}", "weights=PATH")
    assert local.requests == []
    with pytest.raises(NoWeights) as info:
        hub.fetch(Name(NAME.model))  # which has no recipe to train it by
    one_line(info, "zoo list --pretrained", "--weights PATH")
    assert "zoo train" not in str(info.value)


@pytest.mark.parametrize("bad", [{"revision": "main"}, {"revision": None}, {"sha256": "12"}])
def test_a_pin_that_pins_nothing_is_refused(local, tiny_registry, bad):
    pin(Weights(**{"sha256": "a" * 64, "repo": REPO, "revision": "b" * 40, **bad}))
    with pytest.raises(IntegrityError) as info:
        hub.fetch(NAME)
    one_line(info, "pin")
    assert local.requests == []


def test_load_by_name_from_the_hub(published, folder):
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(zoo.load(str(NAME))(x), zoo.load(f"local-dir:{folder}")(x))


# Bad weights


def state():
    return zoo.load(str(NAME), pretrained=False).state_dict()


def evil(**change):
    def write(path):
        save_state({**state(), **change}, path)

    return write


def without(path):
    save_state({k: v for k, v in state().items() if k != "fc.bias"}, path)


def renamed(path):
    save_state({f"module.{k}": v for k, v in state().items()}, path)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("/tmp/zoo-was-here",))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (without, "fc.bias"),
        (renamed, "module."),
        (evil(extra=torch.zeros(1)), "extra"),
        (evil(**{"fc.bias": torch.zeros(5)}), "fc.bias"),
        (evil(**{"fc.bias": torch.full((4,), float("nan"))}), "NaN"),
        (evil(**{"fc.bias": torch.zeros(4, dtype=torch.int32)}), "int32"),
        (lambda p: p.write_bytes(pickle.dumps(Bomb())), "safetensors"),
        (lambda p: torch.save({"a": 1}, p), "safetensors"),
        (lambda p: p.write_bytes(b""), "header"),
        (lambda p: p.write_bytes(struct.pack("<Q", 1 << 62) + b"{}"), "header"),
        (lambda p: p.write_bytes(struct.pack("<Q", 90 << 20) + b" " * 100), "header"),
        (lambda p: p.write_bytes(struct.pack("<Q", 2) + b"[]"), "safetensors"),
        (lambda p: p.write_bytes(p.read_bytes()[:-4]), "safetensors"),
        (lambda p: p.write_bytes(p.read_bytes() + b"0000"), "safetensors"),
    ],
)
def test_bad_weights_are_refused_even_under_the_right_sha256(local, folder, write, words):
    """As a repository that lies consistently: config.json promises exactly this file."""
    write(folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    config["zoo"]["sha256"] = sha256_of(folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config))
    local.add(REPO, contents(folder))
    for name in (f"local-dir:{folder}", f"hf-hub:{REPO}"):
        with pytest.raises(IntegrityError) as info:
            zoo.load(name)
        one_line(info, words)
    assert not Path("/tmp/zoo-was-here").exists()


def test_a_pickle_offered_as_weights_is_refused(local, folder, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(state(), path)
    with pytest.raises(IntegrityError) as info:
        zoo.load(str(NAME), weights=path)
    one_line(info, ".safetensors", "pickle")
    files = contents(folder)
    local.add(REPO, {"pytorch_model.bin": path.read_bytes(), "config.json": files["config.json"]})
    with pytest.raises(NoWeights) as info:
        zoo.load(f"hf-hub:{REPO}")
    one_line(info, WEIGHTS)
    assert not any("pytorch_model.bin" in p for _, p, _ in local.requests)


def test_num_classes_that_does_not_fit_is_refused(published, folder):
    for name in (str(NAME), f"hf-hub:{REPO}", f"local-dir:{folder}"):
        with pytest.raises(IntegrityError) as info:
            zoo.load(name, num_classes=7)
        one_line(info, "num_classes")


# config.json


def changed(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def put(path, value):
    def change(config):
        *parents, last = path.split(".")
        for parent in parents:
            config = config[parent]
        config[last] = value

    return change


HOSTILE = [
    ("architecture", "resnet18", "no plugin registers"),
    ("architecture", "../../evil", "architecture"),
    ("architecture", ["tiny_test"], "architecture"),
    ("architecture", None, "architecture"),
    ("model_args.checkpoint_path", "/tmp/evil.bin", "checkpoint_path"),
    ("model_args.pretrained", True, "pretrained"),
    ("model_args.pretrained_strict", False, "pretrained_strict"),
    ("model_args.pretrained_cfg", {}, "pretrained_cfg"),
    ("model_args.features_only", True, "features_only"),
    ("model_args.cache_dir", "/tmp", "cache_dir"),
    ("model_args.__class__", "x", "__class__"),
    ("model_args.width", {"a": 1}, "width"),
    ("model_args.width", 10**12, "width"),
    ("model_args", [1], "model_args"),
    ("pretrained_cfg", None, "pretrained_cfg"),
    ("pretrained_cfg.url", "http://evil/x.bin", "url"),
    ("pretrained_cfg.file", "/etc/passwd", "file"),
    ("pretrained_cfg.hf_hub_id", "evil/x", "hf_hub_id"),
    ("pretrained_cfg.state_dict", {}, "state_dict"),
    ("pretrained_cfg.custom_load", True, "custom_load"),
    ("pretrained_cfg.source", "file", "source"),
    ("pretrained_cfg.fixed_input_size", True, "fixed_input_size"),
    ("pretrained_cfg.evil", 1, "evil"),
    ("pretrained_cfg.input_size", [1, 8], "input_size"),
    ("pretrained_cfg.input_size", [1, 8, -8], "input_size"),
    ("pretrained_cfg.num_classes", "4", "num_classes"),
    ("pretrained_cfg.num_classes", 10, "num_classes"),
    ("num_classes", 10, "num_classes"),
    ("num_classes", True, "num_classes"),
    ("pretrained_cfg.architecture", "resnet18", "architecture"),
    ("pretrained_cfg.tag", "../x", "tag"),
    ("zoo", None, "sha256"),
    ("zoo.sha256", "x", "sha256"),
    ("zoo.sha256", "0" * 64, "not the published file"),
]


@pytest.mark.parametrize(("path", "value", "words"), HOSTILE, ids=[f"{p}={v}"[:40] for p, v, _ in HOSTILE])
def test_a_hostile_config_is_refused(folder, path, value, words):
    changed(folder, put(path, value))
    with pytest.raises(IntegrityError) as info:
        zoo.load(f"local-dir:{folder}")
    one_line(info, words)


def test_an_argument_that_the_architecture_does_not_declare_is_refused(folder):
    changed(folder, put("model_args.depth", 3))
    with pytest.raises(ZooError) as info:
        zoo.load(f"local-dir:{folder}")
    one_line(info, "depth")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"architecture": NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "larger"),
    ],
)
def test_a_malformed_config_is_refused(folder, data, words):
    (folder / "config.json").write_bytes(data)
    with pytest.raises(IntegrityError) as info:
        read_config(folder)
    one_line(info, words)


def test_an_oversized_config_is_not_downloaded(local, folder):
    local.add(REPO, {**contents(folder), "config.json": b" " * (2 << 20)})
    with pytest.raises(IntegrityError) as info:
        zoo.load(f"hf-hub:{REPO}")
    one_line(info, "config.json", "at most")
    assert local.count("GET", "config.json") == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(["architecture", "num_classes", "model_args", "pretrained_cfg", "zoo"]),
    value=json_values,
)
def test_a_config_of_any_json_is_read_or_a_zoo_error(folder, key, value):
    whole, refusal = (folder / "config.json").read_text(), ""
    try:
        changed(folder, put(key, value))
        read_config(folder)
    except IntegrityError as error:
        refusal = str(error)
    finally:
        (folder / "config.json").write_text(whole)
    assert "\n" not in refusal


# hf-hub: and publishing


@pytest.mark.parametrize("text", ["org", "org/x@../y", "../x", "org/x@", "org/x@a b", "", "org/x@-x"])
def test_malformed_repositories_are_refused(local, text):
    local.fault(method="GET", status=404)
    with pytest.raises(ZooError) as info:
        hub.open_repository(f"hf-hub:{text}")
    one_line(info)


@pytest.mark.parametrize("answer", [{"sha": "../../evil"}, {"id": "x"}, []])
def test_a_server_that_names_no_commit_is_refused(local, answer, monkeypatch):
    from local_hub import Handler

    monkeypatch.setattr(Handler, "info", lambda self, body, **groups: self.send(200, answer))
    with pytest.raises(ZooError) as info:
        hub.open_repository("hf-hub:org/x")
    one_line(info)
    assert blobs() == []


def test_publish_and_reload_give_bitwise_the_same_logits(local, folder):
    local.add(REPO, {".gitattributes": b""})
    commit = hub.push(folder, REPO)
    assert [c[0] for c in local.repos[REPO].commits][1:] == [commit]
    assert {k: v for k, v in local.repos[REPO].commits[-1][1].items() if k != ".gitattributes"} == contents(
        folder
    )
    x = torch.rand(4, 1, 8, 8)
    expected = zoo.load(f"local-dir:{folder}")(x)
    zoo.register_timm()
    for name in (f"hf-hub:{REPO}", f"hf-hub:{REPO}@{commit}"):
        assert torch.equal(zoo.load(name)(x), expected)
        assert torch.equal(timm.create_model(name, pretrained=True).eval()(x), expected)
    pin(Weights(sha256=sha256_of(folder / WEIGHTS), repo=REPO, revision=commit))
    assert torch.equal(zoo.load(str(NAME))(x), expected)
    assert torch.equal(timm.create_model(NAME.timm, pretrained=True).eval()(x), expected)


def test_push_creates_the_repository_and_needs_one_commit(local, folder):
    first = hub.push(folder, REPO, message="hello")
    assert len(local.repos[REPO].commits) == 2
    assert local.count("POST", "/commit/") == 1
    assert hub.push(folder, REPO) == first  # nothing changed: no second commit
    assert len(local.repos[REPO].commits) == 2


def test_push_says_so_when_somebody_else_was_faster(local, folder):
    hub.push(folder, REPO)
    (folder / "README.md").write_text("changed")
    local.fault(method="POST", path="/commit/", status=412)
    with pytest.raises(ZooError) as info:
        hub.push(folder, REPO)
    one_line(info, "412", "again")


def test_push_sends_the_head_that_it_saw(local, folder, monkeypatch):
    hub.push(folder, REPO)
    (folder / "README.md").write_text("changed")
    from local_hub import Handler

    preupload = Handler.preupload

    def race(self, body, repo):
        local.add(REPO, {"README.md": b"somebody else"})
        preupload(self, body, repo)

    monkeypatch.setattr(Handler, "preupload", race)
    with pytest.raises(ZooError, match="412"):
        hub.push(folder, REPO)
    assert local.repos[REPO].commits[-1][1] == {"README.md": b"somebody else"}


@pytest.mark.parametrize("status", [401, 429, 500])
@pytest.mark.parametrize("where", ["/create", "/commit/"])
def test_push_refused_is_one_line(local, folder, status, where):
    local.fault(method="POST", path=where, status=status)
    with pytest.raises(ZooError) as info:
        hub.push(folder, REPO)
    one_line(info, str(status))


@pytest.mark.parametrize(("method", "path"), [("GET", "."), ("POST", "/create"), ("POST", "/commit/")])
def test_push_to_a_silent_server_ends(local, folder, monkeypatch, method, path):
    assert max(hub.PATIENCE, hub.UPLOAD_PATIENCE) < 30
    monkeypatch.setattr(hub, "TIMEOUT", 0.3)
    monkeypatch.setattr(hub, "PATIENCE", 1.0)
    monkeypatch.setattr(hub, "UPLOAD_PATIENCE", 1.0)
    local.fault(method=method, path=path, hang=True)
    start = time.monotonic()
    with pytest.raises(ZooError) as info:
        hub.push(folder, REPO)
    one_line(info, "check the network")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "README.md").unlink(), "README.md"),
        (lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin"),
        (lambda f: (f / "modeling.py").write_text("x"), "modeling.py"),
        (lambda f: (f / "examples.safetensors").symlink_to("/etc/passwd"), "link"),
        (lambda f: (f / WEIGHTS).write_bytes(b"x"), "not the published file"),
        (lambda f: ((f / ".eval_results").mkdir(), (f / ".eval_results" / "x.pkl").write_text("")), "x.pkl"),
    ],
)
def test_push_takes_only_a_staged_folder(local, folder, spoil, words):
    spoil(folder)
    with pytest.raises(IntegrityError) as info:
        hub.push(folder, REPO)
    one_line(info, words)
    assert local.requests == []


def test_pull_fills_a_mirror(local, published, folder, tmp_path, monkeypatch):
    target = hub.pull(NAME, tmp_path / "mirror")
    assert contents(target) == {k: v for k, v in contents(folder).items() if not k.startswith(".eval")}
    local.faults.clear()
    local.fault(method="HEAD", status=500)
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "mirror"))
    assert hub.fetch(NAME) == target / WEIGHTS


def test_pull_repairs_a_broken_mirror(local, published, folder, tmp_path, monkeypatch):
    target = hub.pull(NAME, tmp_path / "mirror")
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "mirror"))
    (target / WEIGHTS).write_bytes(b"broken")
    with pytest.raises(IntegrityError):
        hub.fetch(NAME)
    hub.pull(NAME, tmp_path / "mirror")
    assert hub.fetch(NAME).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_a_pull_that_fails_leaves_what_was_there(local, published, tmp_path):
    target = hub.pull(NAME, tmp_path / "mirror")
    before = contents(target)
    commit = local.add(REPO, {WEIGHTS: before[WEIGHTS] + b"x"})
    pin(Weights(sha256=sha256_of(target / WEIGHTS), repo=REPO, revision=commit))
    with pytest.raises(ZooError):
        hub.pull(NAME, tmp_path / "mirror")
    assert contents(target) == before
    assert [p.name for p in (tmp_path / "mirror").iterdir()] == [target.name]


def test_the_pin_is_written_beside_the_plugin_and_used_at_once(tiny_registry, folder):
    weights = Weights(sha256="a" * 64, repo=REPO, revision="b" * 40)
    other = Weights(sha256="c" * 64)
    path = hub.write_pin(Name("tiny-test", "at_jpeg"), other)
    assert hub.write_pin(NAME, weights) == path
    rows = json.loads(path.read_text())
    assert list(rows) == ["tiny-test.at_dots", "tiny-test.at_jpeg"]
    assert Weights(**rows[str(NAME)]) == weights
    assert tiny_registry.pin(NAME) == weights
    with pytest.raises(IntegrityError):
        hub.write_pin(NAME, Weights(sha256="a" * 64, repo=REPO, revision="main"))


def test_weights_of_a_path_are_loaded_strictly(tiny_registry, folder):
    model = zoo.load(str(NAME), pretrained=False)
    load_into(model, folder / WEIGHTS)
    x = torch.rand(2, 1, 8, 8)
    for path in (folder, folder / WEIGHTS):
        assert torch.equal(zoo.load(str(NAME), weights=path)(x), model(x))
