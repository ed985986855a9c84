"""How the report looks: one style sheet, one colorblind-safe palette (Okabe and Ito), matplotlib settings."""

from collections.abc import Iterable

from raydd.evaluate.record import FULL, RANDOM

INK, MUTED, LINE = "#1f2328", "#656d76", "#d8dee4"
# Black and gray are kept for the ceiling and for random.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f", "#6f4e9b")
FIXED = {FULL: INK, RANDOM: "#8a9199"}

PLOT = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    # Class names come from outside: a dollar sign is no formula.
    "text.parse_math": False,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaeef2",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "svg.fonttype": "path",
    # Equal figures give equal files.
    "svg.hashsalt": "raydd",
}

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1f2328; font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 28px 80px; }
h1 { font-size: 17px; font-weight: 600; color: #656d76; margin: 0 0 10px; }
h2 { font-size: 19px; font-weight: 650; margin: 0 0 12px; }
section { margin-top: 44px; }
p { margin: 0 0 10px; max-width: 78ch; }
.headline { font-size: 25px; line-height: 1.35; font-weight: 600; letter-spacing: -0.01em; max-width: 42em; }
.note { color: #656d76; font-size: 13.5px; }
.warn { border-left: 3px solid #d55e00; padding: 2px 0 2px 12px; font-size: 13.5px; margin: 6px 0; }
.scroll { overflow-x: auto; margin: 4px 0 10px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid #eaeef2; vertical-align: top;
  font-weight: 400; white-space: nowrap; }
thead th { color: #656d76; font-size: 12.5px; border-bottom: 1px solid #afb8c1; vertical-align: bottom; }
thead tr.group th { text-align: left; color: #1f2328; font-weight: 600; border-bottom: 0; padding-bottom: 0; }
tbody th, th:first-child { text-align: left; padding-left: 0; }
tr.first td, tr.first th { border-top: 2px solid #d0d7de; }
tr.full td, tr.full th { font-style: italic; background: #f6f8fa; }
tr.stale td, tr.stale th { color: #8a9199; }
td.gap, th.gap { border-left: 12px solid #fff; }
td small, th small { display: block; color: #656d76; font-size: 12px; }
td.best b { font-weight: 700; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 8px; }
.left td, .left th { text-align: left; white-space: normal; }
img.plot { display: block; max-width: 100%; height: auto; margin: 6px 0 10px; }
details { border-top: 1px solid #eaeef2; padding: 9px 0; }
summary { cursor: pointer; font-weight: 600; }
summary span { font-weight: 400; color: #656d76; font-size: 13.5px; margin-left: 8px; }
.sheet { margin: 12px 0 8px; overflow-x: auto; }
.class { display: flex; align-items: center; margin-bottom: 4px; }
.class > div { flex: 0 0 132px; padding-right: 14px; font-size: 13px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.class img { margin-right: 4px; border-radius: 2px; flex: none; background: #eaeef2; }
.class img.small { image-rendering: pixelated; }
.steps { display: flex; flex-wrap: wrap; gap: 14px 28px; }
.steps p { margin: 0 0 4px; font-size: 13px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.steps .class > div { flex-basis: 56px; padding-right: 8px; color: #656d76; }
pre { font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: #f6f8fa; padding: 14px;
  overflow-x: auto; border-radius: 4px; }
footer { margin-top: 56px; color: #656d76; font-size: 12.5px; }
@media (max-width: 640px) { main { padding: 24px 16px 48px; } .headline { font-size: 20px; } }
@media print { main { max-width: none; } details { break-inside: avoid; } }
"""


def row_colors(labels: Iterable[str]) -> dict[str, str]:
    """One color per row label, the same in every plot of a report; random is gray, full data black."""
    colors, free = {}, 0
    for label in sorted(set(labels)):
        colors[label] = FIXED.get(label) or PALETTE[free % len(PALETTE)]
        free += label not in FIXED
    return colors
