"""Table and picture of the stability study: `python -m benchmarks.depth_stability_figures`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/depth_stability.json"
PICTURE = ROOT / "docs/pictures/depth_stability.png"
DEFAULT = "learned_from_zero_final_norm"
_COLUMNS = (
    "| variant | depth | pre-tanh at the start | actor's gradient, first → last | inputs alike | InfoNCE |"
    " accuracy |\n|---|---|---|---|---|---|---|"
)
_DEPTH_COLOURS = {4: "#c6dbef", 16: "#9ecae1", 64: "#6baed6", 256: "#2171b5", 1024: "#08306b"}
_VARIANT_COLOURS = ("#d1495b", "#edae49", "#66a182", "#8d96a3", "#2e4057", "#00798c", "#b07aa1", "#9c755f")


def markdown_table(cells: list[dict[str, Any]]) -> str:
    """Return a row a cell, by variant and depth: after a few hundred updates none reaches goals yet."""
    rows = [_COLUMNS]
    for cell in sorted(cells, key=lambda cell: (cell["variant"], cell["depth"])):
        start, first, last = cell["inside"]["start"], cell["curve"][0], cell["curve"][-1]
        alike = start["streams"]["actor"]["cosine"][-1]
        rows.append(
            f"| {cell['variant']} | {cell['depth']} | {start['pre_tanh']:.2f}"
            f" ({start['saturated']:.0%} saturated) | {first['actor_gradient_norm']:.3g} → "
            f"{last['actor_gradient_norm']:.3g} | {alike:.4f} | {first['info_nce']:.2f} → "
            f"{last['info_nce']:.2f} | {last['categorical_accuracy']:.3f} |"
        )
    return "\n".join(rows)


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    """Draw how alike inputs become along the published network, and how each variant learns when deepest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_streams(left, cells)
    _draw_curves(right, cells)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(str(path))


def _draw_streams(axes: Axes, cells: list[dict[str, Any]]) -> None:
    """Draw how alike two inputs' streams are from block to block, before any update."""
    for variant, style in (("published", "-"), (DEFAULT, ":")):
        for cell in sorted(cells, key=lambda cell: cell["depth"]):
            if cell["variant"] == variant and cell["depth"] in _DEPTH_COLOURS:
                stream = cell["inside"]["start"]["streams"]["actor"]
                along = [block / stream["block"][-1] for block in stream["block"]]
                apart = [max(1 - cosine, 1e-6) for cosine in stream["cosine"]]
                name = f"{cell['depth']} layers" if style == "-" else None
                colour = _DEPTH_COLOURS[cell["depth"]]
                axes.plot(along, apart, linestyle=style, color=colour, label=name)
    axes.set(yscale="log", xlabel="place in the network (0: stem, 1: last block)")
    axes.set_ylabel("1 − cosine of two inputs' streams")
    axes.set_title("At the start: published (solid), chosen (dotted)", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _draw_curves(axes: Axes, cells: list[dict[str, Any]]) -> None:
    """Draw the InfoNCE of every variant over the updates, at the largest depth."""
    deepest = max(cell["depth"] for cell in cells)
    shown = [cell for cell in cells if cell["depth"] == deepest]
    shown.sort(key=lambda cell: cell["curve"][-1]["info_nce"])
    for index, cell in enumerate(shown):
        curve = cell["curve"]
        chosen = cell["variant"] == DEFAULT
        axes.plot(
            [entry["updates"] for entry in curve],
            [entry["info_nce"] for entry in curve],
            color="#08306b" if chosen else _VARIANT_COLOURS[index % len(_VARIANT_COLOURS)],
            linewidth=2.6 if chosen else 1.3,
            linestyle="-" if index < len(_VARIANT_COLOURS) else "--",
            label=cell["variant"].replace("_", " "),
        )
    axes.set(xlabel="updates", ylabel="InfoNCE (nats)")
    axes.set_title(f"{deepest} layers, width 64, best last value first", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def main() -> None:
    """Print the table of the committed cells and draw them."""
    cells = list(json.loads(RESULT.read_text(encoding="utf-8"))["cells"].values())
    print(markdown_table(cells))
    draw(cells, PICTURE)


if __name__ == "__main__":
    main()
