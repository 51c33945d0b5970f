"""config.json of a repository: nothing in it is obeyed that was not declared."""

from __future__ import annotations

import json

import pytest
from hub_pieces import REPO, contents, one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo
from zoo.errors import IntegrityError, ZooError
from zoo.repository import read_config


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
