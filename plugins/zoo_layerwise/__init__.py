"""Layer-wise analysis: partial adversarial training, perturbations and noise from layer to layer, parameters."""

from __future__ import annotations

from zoo.hookspecs import hookimpl
from zoo.spec import Analysis, Command

BESIDE = {"against": "", "against_weights": ""}  # a second model in the same pictures

ANALYSES = [
    Analysis(
        name="psr",
        run="zoo_layerwise.flow:psr",
        summary="figures 3.12, 3.13: perturbation-to-signal ratio of every convolution's output, in L1, L2, Linf",
        params={"threat": "", "attack": "", "steps": 100, "quantise": True, "seed": 0, **BESIDE},
    ),
    Analysis(
        name="snr",
        run="zoo_layerwise.flow:snr",
        summary="figure 5.6: signal-to-noise ratio of every convolution's input under Gaussian noise, in dB",
        params={"sigma": 0.1, "clip": True, "seed": 0, **BESIDE},
    ),
    Analysis(
        name="sparsity",
        run="zoo_layerwise.activations:sparsity",
        summary="figure 5.4: squared Hoyer term across channels of what leaves each block; the lower, the sparser",
        params={**BESIDE},
    ),
    Analysis(
        name="channels",
        run="zoo_layerwise.activations:channels",
        summary="figure 5.3: how active each channel of each convolution is on each image",
        params={"ratio": 0.1, "shown": 6, **BESIDE},
    ),
    Analysis(
        name="bn",
        run="zoo_layerwise.parameters:batch_norm",
        summary="figures 3.14 to 3.17: running means and variances, scales and offsets of every BatchNorm",
        params={"bins": 20, **BESIDE},
    ),
    Analysis(
        name="filters",
        run="zoo_layerwise.parameters:filters",
        summary="figures 3.18, 3.19: ((L1/L2)^2 - 1) / (d - 1) of the filters of every convolution",
        params={"bins": 20, **BESIDE},
    ),
    Analysis(
        name="svd",
        run="zoo_layerwise.parameters:spectrum",
        summary="figures 3.20, 3.21: singular values of every convolution as a linear map of whole images",
        params={"padding": "circular", "top": 20, "layers": "", "seed": 0, **BESIDE},
    ),
    Analysis(
        name="gradcam",
        run="zoo_layerwise.gradcam:gradcam",
        summary="figure 5.9: Grad-CAM of a layer, the first convolution unless another is named",
        params={"layer": "", "shown": 8, **BESIDE},
    ),
]

COMMANDS = [
    Command(
        name="partial",
        command="zoo_layerwise.command:partial",
        summary="Partial adversarial training: a sweep over codes (A1N2, ...) and cutoff layers.",
    )
]


@hookimpl
def register_analyses() -> list[Analysis]:
    """What can be seen in the layers of any classifier."""
    return ANALYSES


@hookimpl
def register_commands() -> list[Command]:
    """The sweep."""
    return COMMANDS
