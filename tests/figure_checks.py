"""What a reader of a figure sees: its words, and whether its parts lie beside each other."""

from __future__ import annotations

from matplotlib.figure import Figure


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    own = [
        text.get_text() for axis in figure.axes for text in axis.findobj(match=lambda item: hasattr(item, "get_text"))
    ]
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return "\n".join([*own, *legends, figure.get_suptitle()])


def no_overlap(figure: Figure) -> None:
    """Panels with their labels lie beside each other, inside the figure."""
    figure.canvas.draw()
    boxes = [axis.get_tightbbox() for axis in figure.axes if axis.get_visible()]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width + 1
        assert box.y1 <= figure.bbox.height + 1
        for other in boxes[number + 1 :]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert width <= 1 or height <= 1
