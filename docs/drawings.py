"""The drawings of the documentation: python docs/drawings.py writes them anew beside the pages.

Narrow, so that they stay legible on a phone; the colours of the figures, which follow a light or a dark screen.
"""

from html import escape
from pathlib import Path

from headscope.reporting.figures.style import COLOURS, DARK, GRID, INK, MUTED, PAPER

__all__ = ["DRAWINGS", "write_drawings"]

BLUE, ORANGE, GREEN = COLOURS["needed"], COLOURS["redundant"], COLOURS["backed up"]
CLASSES = {
    "paper": ("fill", PAPER), "ink": ("fill", INK), "muted": ("fill", MUTED), "blue": ("fill", BLUE),
    "green": ("fill", GREEN), "orange": ("fill", ORANGE), "card": ("stroke", MUTED), "line": ("stroke", MUTED),
    "own": ("stroke", ORANGE), "soft": ("fill", GRID),
}  # fmt: skip


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    """A whole drawing, with both sets of colours in it."""
    light, dark = (
        " ".join(f".{name} {{ {what}: {choose(colour)} }}" for name, (what, colour) in CLASSES.items())
        for choose in (str, DARK.__getitem__)
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title>",
            "<style>",
            "text { font: 14px system-ui, 'Segoe UI', Arial, 'Noto Sans', 'DejaVu Sans', sans-serif }",
            ".small { font-size: 12.5px } .bold { font-weight: 600 } .middle { text-anchor: middle }",
            ".line { fill: none; stroke-width: 1.5 } .card, .own { stroke-width: 1.2 }",
            ".dashed { stroke-dasharray: 4 3 }",
            light,
            f"@media (prefers-color-scheme: dark) {{ {dark} }}",
            "</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 L8 4 L0 8 Z" class="muted"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" class="paper"/>',
            *parts,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, style: str = "ink") -> str:
    """A line of text; `style` is a list of classes."""
    return f'<text x="{x:g}" y="{y:g}" class="{style}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, lines: list[str], style: str = "") -> str:
    """A frame with centred lines, the first one dark and the others small."""
    first = y + height / 2 + 5 - 8.5 * (len(lines) - 1)
    frame = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="paper card {style}"/>'
    words = [
        text(x + width / 2, first + 17 * row, line, "ink middle" if row == 0 else "muted small middle")
        for row, line in enumerate(lines)
    ]
    return frame + "".join(words)


def arrow(*points: tuple[float, float]) -> str:
    """A line through points, with a tip at the last."""
    path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="{path}" class="line" marker-end="url(#tip)"/>'


def mark(x: float, y: float, number: int, words: str) -> str:
    """A numbered mark, and what stands for it on its right."""
    disc = f'<circle cx="{x:g}" cy="{y:g}" r="11" class="orange"/>'
    return disc + text(x, y + 5, str(number), "paper bold middle") + text(x + 18, y + 5, words, "ink")


def stack(x: float, y: float, width: float, height: float, cards: int, own: int = 0) -> str:
    """A tensor: a card for each head, one behind the other; the one whose way is followed is tinted."""
    drawn = []
    for card in reversed(range(cards)):
        at = f'x="{x + 7 * card:g}" y="{y - 7 * card:g}" width="{width:g}" height="{height:g}" rx="2"'
        drawn.append(f'<rect {at} class="paper {"own" if card == own else "card"}"/>')
        if card == own:
            drawn.append(f'<rect {at} class="orange" opacity="0.22"/>')
    return "".join(drawn)


def story() -> str:
    """What is handed on to what, room by room."""
    left, middle, right = 14, 169, 324
    rooms = [
        (left, 14, "models", "by name, or own"), (middle, 14, "text", "documents, batches"),
        (left, 98, "anatomy", "where heads are"), (middle, 98, "watching", "hooks, one pass"),
        (right, 98, "statistics", "sums that merge"), (left, 194, "effects", "what a cut costs"),
        (middle, 194, "scoring", "what each is worth"), (right, 194, "likeness", "how alike they are"),
        (middle, 254, "head_roles", "what each looks at"), (right, 254, "surplus", "how many suffice"),
        (left, 254, "planning", "which may go"), (left, 346, "surgery", "a smaller model"),
        (middle, 346, "verdict", "on other text"), (right, 346, "reporting", "a page, figures"),
    ]  # fmt: skip
    parts = ['<rect x="160" y="185" width="305" height="126" rx="8" class="card line dashed"/>']
    parts += [box(x, y, 132, 48, [name, about]) for x, y, name, about in rooms]
    parts += [arrow((80, 62), (80, 96)), arrow((235, 62), (235, 96))]  # models, text
    parts += [arrow((146, 122), (167, 122)), arrow((301, 122), (322, 122))]  # anatomy, watching
    parts += [arrow((80, 146), (80, 192)), arrow((390, 146), (390, 183))]  # anatomy to effects, statistics to tables
    parts += [arrow((146, 218), (158, 218)), arrow((160, 278), (148, 278))]  # effects to tables, tables to planning
    parts += [arrow((80, 302), (80, 344)), arrow((110, 302), (110, 326), (200, 326), (200, 344))]  # planning
    parts += [arrow((260, 311), (260, 344)), arrow((390, 311), (390, 344)), arrow((301, 370), (322, 370))]
    return svg(478, 408, "The rooms of headscope, from a model and text to a smaller model and a report", parts)


def hooks() -> str:
    """Which hook sits where in one attention layer."""
    parts = [text(158, 28, "hidden states", "muted middle"), arrow((158, 36), (158, 72))]
    for x, name in ((18, "q"), (116, "k"), (214, "v")):
        parts.append(f'<path d="M158 54 L{x + 42} 54" class="line"/>')
        parts += [arrow((x + 42, 54), (x + 42, 72)), box(x, 74, 84, 36, [f"{name}_proj"])]
        parts += [arrow((x + 42, 110), (x + 42, 162)), text(x + 50, 142, name, "blue bold")]
    parts += [box(18, 164, 280, 62, ["attention function", "softmax(scaling · q·kᵀ + bias) · v"])]
    parts += [arrow((158, 226), (158, 260)), text(168, 248, "z, one slice a head", "blue bold")]
    parts += [box(98, 262, 120, 34, ["gate, if any"], "dashed")]
    parts += [arrow((158, 296), (158, 346)), text(168, 325, "gated_z", "blue bold")]
    parts += [box(98, 348, 120, 36, ["o_proj"]), arrow((158, 384), (158, 430))]
    parts += [text(168, 411, "Σ of contributions + bias", "blue bold")]
    parts += [text(158, 450, "residual stream", "muted middle")]
    parts += [mark(322, 24, 1, "a new pass starts"), mark(322, 92, 2, "probe only")]
    parts += [mark(322, 182, 3, "route: q, k, v, z"), text(340, 206, "and the map, if asked", "ink")]
    parts += [mark(322, 320, 4, "pre-hook: by head"), text(340, 344, "look, ablate, gate", "ink")]
    for y, end in ((24, 212), (92, 300), (182, 300), (320, 234)):
        parts.append(f'<path d="M309 {y} L{end} {y}" class="line dashed"/>')
    return svg(490, 466, "One attention layer and the four places where headscope listens", parts)


def layer() -> str:
    """One attention layer as tensors, a card for each head."""
    parts = [text(16, 28, "x", "ink bold"), text(34, 28, "(batch, position, width)", "muted small")]
    parts += ['<path d="M46 36 L46 46" class="line"/>']
    columns = [
        (16, "q", 4, "head", "head_dim"), (176, "k", 2, "KV head", "head_dim"), (326, "v", 2, "KV head", "value_dim")
    ]  # fmt: skip
    for x, name, cards, heads, dims in columns:
        parts += [arrow((46, 46), (x + 30, 46), (x + 30, 64)), stack(x, 92, 58, 74, cards)]
        parts += [text(x, 186, name, "blue bold"), text(x + 16, 186, f"{heads} × position", "muted small")]
        parts += [text(x + 16, 203, f"× {dims}", "muted small")]
    parts += [arrow((46, 212), (46, 262)), arrow((206, 212), (206, 238), (110, 238), (110, 262))]
    parts += [text(122, 257, "softmax(scaling · q·kᵀ + bias)", "muted small"), stack(16, 288, 82, 82, 4)]
    parts += [text(134, 306, "pattern", "blue bold"), text(134, 324, "head × query × key", "muted small")]
    parts += [text(134, 341, "rows sum to 1", "muted small")]
    parts += [arrow((356, 212), (356, 406), (124, 406), (124, 424)), arrow((57, 370), (57, 424))]
    parts += [text(206, 400, "pattern · v", "muted small"), stack(16, 454, 58, 74, 4)]
    parts += [text(116, 470, "z", "blue bold"), text(132, 470, "head × position × value_dim", "muted small")]
    parts += [
        text(116, 492, "gated_z", "blue bold"),
        text(174, 492, "the same, after the gate if there is one", "muted small"),
    ]
    parts += [arrow((45, 528), (45, 568)), text(56, 552, "W_O of each head", "muted small"), stack(16, 598, 118, 74, 4)]
    parts += [text(176, 614, "contribution", "blue bold"), text(176, 632, "head × position × width", "muted small")]
    parts += [text(176, 649, "what each head adds", "muted small"), arrow((75, 672), (75, 706))]
    parts += [text(86, 694, "Σ over heads + bias", "muted small"), text(16, 726, "output", "ink bold")]
    parts += [text(68, 726, "(batch, position, width)", "muted small")]
    parts += ['<rect x="262" y="714" width="14" height="14" rx="2" class="orange" opacity="0.5"/>']
    parts += [text(284, 726, "L0H0 and its KV head", "muted small")]
    return svg(470, 744, "One attention layer as tensors, from x to its output, with one head tinted", parts)


DRAWINGS = {"story": story, "hooks": hooks, "layer": layer}


def write_drawings(folder: Path) -> None:
    """Write each drawing into a folder."""
    for name, draw in DRAWINGS.items():
        (folder / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    write_drawings(Path(__file__).parent)
