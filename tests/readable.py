"""Whether every text on a figure can be read: inside the picture, and on no other text."""

from __future__ import annotations

from typing import Any
from unittest import mock


def assert_readable(figure: Any, least: int = 5) -> None:
    """Fail with the first text that is cut off or lies on another one.

    Args:
        figure: of matplotlib, not yet drawn.
        least: it must have more texts than this.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown: list[Text] = []
    draw = Text.draw
    with mock.patch.object(Text, "draw", lambda self, *rest: (shown.append(self), draw(self, *rest))):
        canvas.draw()  # only what is drawn counts: not the ticks beyond an axis
    width, height = figure.bbox.width, figure.bbox.height
    boxes = []
    for text in shown:
        if text.get_text().strip() and text.get_visible():
            box = text.get_window_extent(canvas.get_renderer())
            boxes.append((text.get_text(), box))
            assert box.x0 >= -1, text.get_text()
            assert box.y0 >= -1, text.get_text()
            assert box.x1 <= width + 1, text.get_text()
            assert box.y1 <= height + 1, text.get_text()
    assert len(boxes) > least
    for number, (first, box) in enumerate(boxes):
        for second, other in boxes[number + 1 :]:
            apart = box.x1 <= other.x0 + 1 or other.x1 <= box.x0 + 1 or box.y1 <= other.y0 + 1 or other.y1 <= box.y0 + 1  # fmt: skip
            assert apart, f"{first!r} lies on {second!r}"
