"""Arguments of the layer-wise analyses as a command line gives them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from zoo.analysis import analyse
from zoo.data import load_data
from zoo.errors import MissingExtra, ZooError
from zoo.threat import Threat
from zoo_layerwise import activations, flow, gradcam, parameters

THREAT = Threat.parse("linf:0.1")


@pytest.mark.parametrize(
    ("run", "given"),
    [
        (flow.psr, {"steps": "many", "threat": THREAT}),
        (flow.psr, {"steps": 1.5, "threat": THREAT}),
        (flow.snr, {"sigma": "x"}),
        (activations.channels, {"shown": "all"}),
        (activations.channels, {"ratio": "x"}),
        (parameters.filters, {"bins": "a"}),
        (parameters.spectrum, {"top": 0}),
        (gradcam.gradcam, {"shown": True}),
    ],
)
def test_parameters_that_are_no_numbers_are_named(run: Any, given: dict[str, Any], tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(10)).eval()
    data = load_data("digits", "test").subset(2)
    model(data.pixels())
    name = next(iter(given))
    with pytest.raises(ZooError, match=rf"^{name}={given[name]} "):
        run(model, data, out=tmp_path, **given)


def test_the_number_of_a_module_on_a_command_line_is_its_path(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(10)).eval()
    data = load_data("digits", "test").subset(2)
    model(data.pixels())
    named: Any = 0
    assert gradcam.gradcam(model, data, out=tmp_path, layer=named)["models"]["Sequential"]["layer"] == "0"
    found = parameters.spectrum(model, data, out=tmp_path, layers=named)["models"]["Sequential"]
    assert [row["layer"] for row in found] == ["0"]


@pytest.mark.parametrize("kind", ["psr", "svd"])
def test_a_missing_matplotlib_is_said_before_anything_is_measured(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(nn.Module):
        def forward(self, x: Any) -> Any:
            raise AssertionError("measured")

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match="plot"):
        analyse(Silent(), kind, out=tmp_path / "out", data="digits", n=2)
    assert not (tmp_path / "out").exists()
