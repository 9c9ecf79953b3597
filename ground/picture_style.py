"""The one style of all pictures: colours, fonts, a heading that says what is shown, and how a file appears.

Matplotlib is imported when a picture is drawn, and used through its objects: no display, no global figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thousandfold.ground.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any kind of colour vision; yellow is too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
REACHED, MISSED = PALETTE[:2]
INK, SOFT, FAINT, WALL = "#222222", "#6B6B6B", "#DDDDDD", "#C9CED6"
DENSITY_MAP = "viridis"
DPI = 150

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
}
_TITLE_POINTS, _FACT_POINTS, _LINE_SPACING = 13.0, 9.5, 1.35
_MARGIN_INCHES, _BELOW_HEADING_INCHES = 0.08, 0.10
_BETWEEN_FACTS = " · "


@contextmanager
def house_figure(
    path: Path,
    width: float,
    height: float,
    title: str = "",
    facts: Sequence[str] = (),
    panel_padding: float | None = None,
) -> Iterator[Figure]:
    """Yield a figure in the one style; it is written as PNG when the block ends well.

    Args:
        path: the file; it appears complete or not at all.
        width, height: of what is drawn below the heading, in inches.
        title: what the picture shows, in bold above it.
        facts: of what it was drawn, below the title: task, artifact, depth and seed, as far as there are any.
        panel_padding: around each panel, to left and right, in inches; None: matplotlib's own.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=panel_padding)
        figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        layout.set(rect=(0, 0, 1, _write_heading(canvas, title, facts)))
        yield figure
        with atomic_file(path) as temporary:
            canvas.print_png(str(temporary))


def _write_heading(canvas: FigureCanvasAgg, title: str, facts: Sequence[str]) -> float:
    """Write title and facts at the top left, in lines no longer than the picture is wide, and make room.

    Returns:
        The share of the picture's height that is left below them.
    """
    figure = canvas.figure
    bold, plain = {"fontsize": _TITLE_POINTS, "fontweight": "bold"}, {"fontsize": _FACT_POINTS, "color": SOFT}
    width, height = figure.get_size_inches()
    room = (width - 2 * _MARGIN_INCHES) * figure.dpi

    def fits(line: str, style: dict[str, Any]) -> bool:
        text = figure.text(0, 0, line, **style)
        width = text.get_window_extent(canvas.get_renderer()).width
        text.remove()
        return width <= room

    lines = [(line, bold) for line in _lines(title.split(), " ", lambda line: fits(line, bold))]
    facts = [fact for fact in facts if fact]
    lines += [(line, plain) for line in _lines(facts, _BETWEEN_FACTS, lambda line: fits(line, plain))]
    if not lines:
        return 1.0
    heights = [_LINE_SPACING * style["fontsize"] / 72 for _, style in lines]
    heading = _MARGIN_INCHES + sum(heights) + _BELOW_HEADING_INCHES
    figure.set_size_inches(width, whole := height + heading)
    top = whole - _MARGIN_INCHES
    for (line, style), tall in zip(lines, heights, strict=True):
        figure.text(_MARGIN_INCHES / width, top / whole, line, va="top", **style)
        top -= tall
    return height / whole


def _lines(parts: Sequence[str], between: str, fits: Callable[[str], bool]) -> list[str]:
    """Return the parts in as few lines as fit; a part that is too long has a line of its own."""
    lines: list[str] = []
    for part in parts:
        if lines and fits(longer := lines[-1] + between + part):
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def short_count(value: float) -> str:
    """Return 250000 as `250k` and 1500000 as `1.5M`."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def count_axis(axes: Axes) -> None:
    """Write the counts of a horizontal axis short, and so few of them that none touch."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: short_count(value))


def signed(text: str) -> str:
    """Return a number's text with the minus sign that axes have."""
    return text.replace("-", "−") if text.startswith("-") else text
