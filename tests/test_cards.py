"""Cards: what is staged, what is refused, and the table of the README."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from huggingface_hub import EvalResultEntry, ModelCardData
from huggingface_hub._eval_results import parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import given
from hypothesis import strategies as st

import zoo
from zoo import cards
from zoo.card_text import _attack_table
from zoo.errors import IntegrityError, ZooError
from zoo.files import sha256_of
from zoo.grammar import Name
from zoo.result import Result
from zoo.weights import load_into, read_state, round_to_half, save_state, state_sha256

NAME = Name("tiny-test", "at_dots")


@pytest.fixture
def model(tiny_registry):
    torch.manual_seed(1)
    return zoo.load(str(NAME), pretrained=False)


@pytest.fixture
def result(model, tmp_path):
    rounded = zoo.load(str(NAME), weights=save_state(round_to_half(model), tmp_path / "r.safetensors"))
    return Result(
        name=str(NAME),
        sha256=state_sha256(rounded),
        dataset="dots",
        data_sha256="d" * 64,
        n=200,
        threat="linf:8/255",
        metric="accuracy",
        clean=0.915,
        robust=0.4325,
        per_attack={"fgsm": 0.6, "pgd(steps=20)": 0.4325, "square": 0.7},
        interval=(0.36, 0.50),
        flags=(),
        protocol="quick-1 [fgsm; pgd(steps=20)] linf:8/255 counting=all seed=0 gradients=float32",
        seed=0,
        device="cpu",
        seconds=1.0,
    )


def one_line(info, *words):
    text = str(info.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_staged_folder_is_the_rounded_model(model, result, tmp_path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folder = cards.stage(NAME, model, [result], tmp_path / "cards")
    assert folder == tmp_path / "cards" / "tiny-test.at_dots"
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == [
        ".eval_results/quick-1.yaml",
        "README.md",
        "config.json",
        "model.safetensors",
        "results.json",
    ]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    state = read_state(folder / "model.safetensors")
    assert state["fc.weight"].dtype == torch.float16
    assert state["bn1.running_var"].dtype == torch.float32
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the model is as it was
    x = torch.rand(3, 1, 8, 8)
    loaded = zoo.load(f"local-dir:{folder}")
    assert not torch.equal(loaded(x), model(x))
    load_into(model, folder / "model.safetensors")
    assert torch.equal(loaded(x), model(x))
    zoo.register_timm()
    assert torch.equal(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(x), model(x))


def test_config_is_what_timm_and_the_zoo_read(model, result, tmp_path):
    folder = cards.stage(NAME, model, [result], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "tiny_test"
    assert (config["num_classes"], config["num_features"]) == (4, 8)
    assert config["model_args"] == {"width": 8, "in_chans": 1}
    assert config["label_names"] == ["a", "b", "c", "d"]
    cfg = config["pretrained_cfg"]
    assert cfg["tag"] == "at_dots"
    assert (cfg["input_size"], cfg["mean"], cfg["std"]) == ([1, 8, 8], [0.0], [1.0])
    assert not {"url", "file", "hf_hub_id", "source", "state_dict", "custom_load"} & set(cfg)
    about = config["zoo"]
    assert about["sha256"] == sha256_of(folder / "model.safetensors")
    assert (about["id"], about["threat"], about["task"]) == ("tiny-test", "linf:8/255", "classify")
    assert zoo.Result.from_dict(json.loads((folder / "results.json").read_text())["results"][0]) == result


def test_front_matter_is_the_hubs(model, result, tmp_path):
    folder = cards.stage(NAME, model, [result], tmp_path)
    head = cards.read_front_matter((folder / "README.md").read_text())
    assert head["library_name"] == "adversarial-zoo"
    assert head["pipeline_tag"] == "image-classification"
    assert head["license"] == "mit"
    assert head["datasets"] == ["org/dots"]
    assert {"adversarial-robustness", "arxiv:2102.01234"} <= set(head["tags"])
    name, entries = model_index_to_eval_results(head["model-index"])
    assert name == str(NAME)
    assert [(e.metric_name, e.metric_value) for e in entries] == [
        ("Clean accuracy", 91.5),
        ("Robust accuracy (linf:8/255, quick-1)", 43.25),
    ]
    assert entries[1].metric_args["protocol"] == result.protocol
    assert ModelCardData(**head, ignore_metadata_errors=False).license == "mit"
    rows = yaml.safe_load((folder / ".eval_results" / "quick-1.yaml").read_text())
    parsed = parse_eval_result_entries(rows)
    assert all(isinstance(entry, EvalResultEntry) for entry in parsed)
    assert [entry.value for entry in parsed] == [91.5, 43.25]
    assert result.protocol in parsed[1].notes


def test_the_readme_says_what_a_reader_needs(model, result, tmp_path):
    flagged = replace(result, flags=("black-box-stronger",))
    folder = cards.stage(NAME, model, [flagged], tmp_path, explain={"black-box-stronger": "one image of 200"})
    text = (folder / "README.md").read_text()
    for part in (
        "a tiny network",
        "zoo.load('tiny-test.at_dots')",
        "tiny_test.at_dots",
        "zoo evaluate tiny-test.at_dots",
        "| `pgd(steps=20)` | 43.25 % |",
        "| argument `width` | 8 |",
        "one image of 200",
        result.protocol,
        "upper bound",
    ):
        assert part in text


def test_examples_are_copied_if_they_are_there(model, result, tmp_path):
    examples = tmp_path / "examples.safetensors"
    folder = cards.stage(NAME, model, [result], tmp_path / "a", examples=examples)
    assert not (folder / "examples.safetensors").exists()
    save_state({"x": torch.zeros(1)}, examples)
    folder = cards.stage(NAME, model, [result], tmp_path / "a", examples=examples)
    assert (folder / "examples.safetensors").read_bytes() == examples.read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": " "}, "no protocol"),
        ({"flags": ("zero-gradients",)}, "'zero-gradients'"),
        ({"sha256": "0" * 64}, "other weights"),
        ({"name": "tiny-test.at_jpeg"}, "tiny-test.at_jpeg"),
        ({"clean": float("nan")}, "JSON"),
    ],
)
def test_a_number_that_cannot_be_trusted_is_refused(model, result, tmp_path, change, words):
    with pytest.raises(ZooError) as info:
        cards.stage(NAME, model, [result, replace(result, **change)], tmp_path / "cards")
    one_line(info, words)
    assert list((tmp_path / "cards").glob("*") if (tmp_path / "cards").exists() else []) == []


def test_a_result_of_the_unrounded_model_is_refused(model, result, tmp_path):
    with pytest.raises(ZooError) as info:
        cards.stage(NAME, model, [replace(result, sha256=state_sha256(model))], tmp_path / "cards")
    one_line(info, "round")


def test_a_model_that_is_not_its_recipes_is_refused(tiny_registry, tmp_path):
    model = zoo.load(str(NAME), pretrained=False, width=6)
    with pytest.raises(IntegrityError) as info:
        cards.stage(NAME, model, [], tmp_path / "cards")
    one_line(info, "width")
    model = zoo.load(str(NAME), pretrained=False)
    model.forward = lambda x: x.flatten(1)[:, :4]  # the same weights, another function
    with pytest.raises(IntegrityError) as info:
        cards.stage(NAME, model, [], tmp_path / "cards")
    one_line(info, "does not give the logits")
    assert list((tmp_path / "cards").iterdir()) == []


def test_corruptions_are_reported_by_their_mean_and_as_no_adversary(model, result, tmp_path):
    shares = {("fog", 1): 0.9, ("fog", 5): 0.5, ("snow", 1): 0.8}
    calls = {f"corruption(name={name}, severity={s})": [name, s] for name, s in shares}
    corrupted = replace(
        result,
        robust=None,
        interval=None,
        per_attack=dict(zip(calls, shares.values(), strict=True)),
        protocol="corruptions@1 [...] linf:8/255",
        extra={"corruptions": {"mean": 0.7333, "everywhere": 0.45, "calls": calls}},
    )
    folder = cards.stage(NAME, model, [corrupted], tmp_path)
    text = (folder / "README.md").read_text()
    for part in (
        "| 91.5 % | no adversary; corruptions 73.33 % | corruptions@1 |",
        "| corruption | severity 1 | severity 5 | mean |",
        "| fog | 90 % | 50 % | 70 % |",
        "| snow | 80 % |  | 80 % |",
        "Mean over all 3: 73.33 %. Right on the clean image and under every one: 45 %.",
    ):
        assert part in text
    entries = model_index_to_eval_results(cards.read_front_matter(text)["model-index"])[1]
    found = {entry.metric_name: entry.metric_value for entry in entries}
    assert found == {"Clean accuracy": 91.5, "Corruption accuracy (mean of 3, corruptions@1)": 73.33}
    rows = yaml.safe_load((folder / ".eval_results" / "corruptions-1.yaml").read_text())
    assert [row["value"] for row in rows] == [91.5, 73.33]


def test_a_failure_leaves_the_old_folder(model, result, tmp_path):
    folder = cards.stage(NAME, model, [result], tmp_path)
    before = (folder / "README.md").read_bytes()
    with pytest.raises(ZooError):
        cards.stage(NAME, model, [replace(result, clean=float("inf"))], tmp_path)
    assert (folder / "README.md").read_bytes() == before


# Front matter of strangers


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("a: !!python/object/apply:os.mkdir [/tmp/zoo-yaml]", "not plain YAML"),
        ("a: !!python/name:os.system", "not plain YAML"),
        ("a: [1", "not plain YAML"),
        ("- 1", "not a mapping"),
        ("a: &a [1]\nb: [*a, *a]", "aliases"),
        ("a: " + "x" * (1 << 18), "256 KB"),
        ("[" * 3000, "not plain YAML"),
        ("a: \x00", "not plain YAML"),
    ],
)
def test_unsafe_yaml_is_refused(head, words, tmp_path):
    with pytest.raises(IntegrityError) as info:
        cards.read_front_matter(f"---\n{head}\n---\ntext")
    one_line(info, words)


def test_no_front_matter_is_empty():
    assert cards.read_front_matter("# A card") == {}
    assert cards.read_front_matter("---\na: 1\n---\ntext") == {"a": 1}


@given(st.text(max_size=200))
def test_any_head_is_a_mapping_or_an_integrity_error(text):
    refusal = ""
    try:
        assert isinstance(cards.read_front_matter(f"---\n{text}\n---\n"), dict)
    except IntegrityError as error:
        refusal = str(error)
    assert "\n" not in refusal


def test_the_texts_of_a_card_are_written_again_and_its_numbers_stay(model, result, tmp_path):
    explain, found = {"x-flag": "for a reason"}, {"analysis": "a", "dataset": "dots", "n": 3, "value": 0.5}
    flagged = replace(result, flags=("x-flag",))
    folder = cards.stage(NAME, model, [flagged], tmp_path, explain=explain, analyses=[found])
    kept = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert not cards.rewrite(folder)
    (folder / "README.md").write_text("gone")
    (folder / ".eval_results" / "quick-1.yaml").unlink()
    assert cards.rewrite(folder)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == kept
    (folder / "results.json").unlink()
    with pytest.raises(ZooError) as info:
        cards.rewrite(folder)
    one_line(info, "stage the card again")


def test_a_card_says_how_its_weights_were_trained(model, result, tmp_path):
    hardware = {"machine": "x86_64", "processors": 2, "gpu": ""}
    training = {"seconds": 90.0, "threads": 1, "processes": 1, "precision": "bfloat16", "hardware": hardware}
    training["versions"] = {"torch": "2.15.0"}
    folder = cards.stage(NAME, model, [result], tmp_path, training=training)
    text = (folder / "README.md").read_text()
    assert "## Training\n\n1.5 minutes on 1 of 2 cores (x86_64), in bfloat16; torch 2.15.0." in text
    assert not cards.rewrite(folder)
    on_gpu = {**training, "processes": 4, "hardware": {**hardware, "gpu": "NVIDIA H100"}}
    folder = cards.stage(NAME, model, [result], tmp_path, training=on_gpu)
    assert "1.5 minutes on NVIDIA H100, 4 processes, in bfloat16" in (folder / "README.md").read_text()


def test_a_card_names_its_licences_and_what_to_cite(model, result, tmp_path):
    text = (cards.stage(NAME, model, [result], tmp_path) / "README.md").read_text()
    assert "Terms of the weights: mit. Cite https://arxiv.org/abs/2102.01234 for the method" in text


def test_a_card_has_the_published_figures_that_its_model_stands_for(model, result, tmp_path, tiny_registry):
    """From the results that are staged, not from a card that lies there already."""
    folder = tiny_registry.plugins[0].folder
    paper = "table,row,column,value,std,unit\n1.1,Ours,PGD-20,46.6,0.3,%\n1.1,Ours,CW,40.0,,%\n1.1,Other,PGD-20,9,,%\n"
    columns = {"PGD-20": "pgd(steps=20)"}
    mapping = {"1.1": {"rows": {"Ours": str(NAME), "Other": "tiny-test.at_jpeg"}, "columns": columns}}
    with open(f"{folder}/paper.csv", "w") as file:
        file.write(paper)
    with open(f"{folder}/tables.json", "w") as file:
        json.dump(mapping, file)
    text = (cards.stage(NAME, model, [result], tmp_path / "a") / "README.md").read_text()
    _, _, rows = text.partition("## Published figures")[2].partition("| --- |")
    assert rows.splitlines()[1] == "| `tiny:1.1` | Ours | PGD-20 | 46.6±0.3 % | 43.25 | 200 of dots |"
    assert "Other" not in text
    assert "CW" not in text


@pytest.mark.parametrize("counting", ["all", "cascade"])
def test_a_cascade_is_said_beside_its_accuracies(counting: str) -> None:
    """Square at 0 % after PGD at 0 % would otherwise read as if Square alone left nothing."""
    protocol = f"custom [fgsm; square] linf:0.1 counting={counting} seed=0"
    row = {"dataset": "digits", "threat": "linf:0.1", "metric": "accuracy", "extra": {}, "protocol": protocol}
    text = _attack_table({**row, "per_attack": {"fgsm": 0.0, "square": 0.0}})
    assert ("each on what those before it in the protocol left" in text) == (counting == "cascade")
