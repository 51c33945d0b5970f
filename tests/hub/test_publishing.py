"""hf-hub: names, publishing and pulling, against a local Hub."""

from __future__ import annotations

import json
import time

import pytest
import timm
import torch
from hub_pieces import NAME, REPO, WEIGHTS, blobs, contents, one_line, pin

import zoo
from zoo import hub
from zoo.errors import IntegrityError, ZooError
from zoo.files import sha256_of
from zoo.grammar import Name
from zoo.spec import Weights
from zoo.weights import load_into


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
