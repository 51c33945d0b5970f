"""Which DCT coefficients a network sees, and the statistics that bring them to one scale: literals, no torch.

Coefficients of an 8x8 tile are numbered 8 * (vertical frequency) + (horizontal frequency), not in JPEG's zigzag.
The sets are those of Xu et al., "Learning in the frequency domain" (CVPR 2020, arXiv:2002.12416), whose code
(calmevtime/DCTNet) names them by their number of channels; 24 is that of Chaudhury's thesis, chapter 5. Channels
stand in the order Y, Cb, Cr.
"""

from __future__ import annotations

from zoo.errors import ContractError

TILE = 8
PLANES = ("Y", "Cb", "Cr")


def _rows(*widths: int) -> tuple[int, ...]:
    """The first coefficients of each row of a tile, as many as `widths` says."""
    return tuple(TILE * row + column for row, width in enumerate(widths) for column in range(width))


# {number of channels: coefficients of Y, of Cb, of Cr}
SETS: dict[int, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    6: (_rows(2, 2), _rows(1), _rows(1)),
    24: (_rows(4, 4, 4, 4), _rows(2, 2), _rows(2, 2)),
    32: (_rows(5, 5, 5, 4, 3), _rows(3, 2), _rows(3, 2)),
    48: (_rows(6, 6, 6, 6, 4, 4), _rows(3, 3, 2), _rows(3, 3, 2)),
    64: (_rows(7, 7, 6, 6, 6, 6, 6), _rows(3, 3, 2, 2), _rows(3, 3, 2, 2)),
}

# Of ImageNet, in grey levels, as the authors of the sets shipped them (`train_upscaled_static_*`), up to the last
# coefficient that a set uses. What they call std is the spread over images of each image's mean coefficient, and
# not that of the coefficients (Y0 416, Y1 78): an honest one would weigh the details twenty times less.
MEANS: dict[str, tuple[float, ...]] = {
    "Y": (
        *(-88.397, 0.014242, 0.0034117, 0.0070792, 0.024295, 0.0048884, 0.011029, 0.014621),
        *(0.4438, -0.014657, -0.0054878, -0.0074716, -0.0017573, -0.0019678, -0.0010014, -0.00067293),
        *(-0.032971, -0.0069187, -0.0045815, -0.0032968, 0.00029935, -0.0010084, 9.2506e-05, -0.00091809),
        *(0.027731, -0.0068864, -0.0043638, -0.0034875, -0.00074995, -0.00012685, -9.9695e-05, 0.00042945),
        *(0.021127, 0.013356, 0.012893, 0.013848, 0.00080353, 0.013728, 0.013314, 0.013362),
        *(0.0056187, -0.0038503, -0.0016255, -0.00089914, -0.00060506, -9.618e-05, 0.00028288, 0.00051148),
        *(-0.0060038, -0.001058, -0.00050092, 4.1829e-05, -0.00010169, -0.00034269),
    ),
    "Cb": (
        *(-58.709, -0.14975, 0.015083, -0.15743, 0.013664, -0.21918, 0.017582, -0.62055),
        *(0.13488, -0.0042079, -0.0010616, 8.0632e-05, 1.8554e-05, 0.00046599, -1.611e-05, 0.00037761),
        *(-0.0032042, -0.0021745, 0.00017846, -0.0025755, -6.3193e-05, -0.0061709, 2.2338e-05, -0.027234),
        *(0.014375, -0.0001592),
    ),
    "Cr": (
        *(32.116, -0.14412, 0.012337, -0.1512, 0.008572, -0.21042, 0.01523, -0.59077),
        *(-0.13207, -0.0040276, -0.00093269, 0.00010862, 4.1762e-05, 0.00046122, 2.8299e-05, 0.00032597),
        *(-0.0039396, -0.0022667, 6.7284e-05, -0.0026205, 0.00016429, -0.0066546, 0.00025047, -0.02864),
        *(-0.011487, -0.00020323),
    ),
}
STDS: dict[str, tuple[float, ...]] = {
    "Y": (
        *(259.96, 2.7776, 2.0454, 1.3947, 1.1929, 0.86391, 0.68394, 0.57572),
        *(3.9907, 0.5662, 0.59385, 0.43958, 0.38698, 0.30748, 0.26694, 0.22055),
        *(2.4791, 0.59187, 0.64341, 0.46003, 0.40897, 0.31736, 0.27511, 0.2124),
        *(1.6547, 0.44618, 0.46693, 0.36985, 0.33952, 0.26992, 0.23661, 0.20211),
        *(1.3388, 0.39514, 0.42135, 0.34065, 0.32892, 0.25796, 0.22765, 0.18097),
        *(1.0203, 0.31577, 0.3287, 0.27429, 0.26293, 0.22137, 0.19189, 0.18148),
        *(0.84185, 0.27672, 0.28746, 0.24236, 0.23329, 0.19236),
    ),
    "Cb": (
        *(81.161, 0.49091, 0.31735, 0.20449, 0.11882, 0.12908, 0.050844, 0.26862),
        *(0.78728, 0.10321, 0.096477, 0.062715, 0.046128, 0.033353, 0.023952, 0.018714),
        *(0.38195, 0.097172, 0.10334, 0.063937, 0.049453, 0.035066, 0.025177, 0.032152),
        *(0.23052, 0.063559),
    ),
    "Cr": (
        *(75.848, 0.46409, 0.29777, 0.19486, 0.1079, 0.12831, 0.045828, 0.27543),
        *(0.70298, 0.094832, 0.08731, 0.056864, 0.040744, 0.029727, 0.02135, 0.016915),
        *(0.3597, 0.087856, 0.092837, 0.056967, 0.043606, 0.031381, 0.022382, 0.031701),
        *(0.21259, 0.057565),
    ),
}


def chosen(channels: int, planes: int = 3) -> list[tuple[int, int, str]]:
    """The channels of a set, in order: (plane of the input, coefficient, whose statistics).

    Args:
        channels: a key of `SETS`.
        planes: 3 for YCbCr; any other number of planes are all taken as luminance, without colours.

    Raises:
        ContractError: there is no such set.
    """
    if channels not in SETS:
        known = ", ".join(str(number) for number in SETS)
        raise ContractError(f"channels={channels!r} is no set of DCT channels; the sets have {known}")
    if planes != len(PLANES):
        return [(plane, index, "Y") for plane in range(planes) for index in SETS[channels][0]]
    pairs = zip(range(planes), PLANES, SETS[channels], strict=True)
    return [(plane, index, name) for plane, name, indices in pairs for index in indices]
