"""What was done to a study in, one self-contained page for a person at the hospital out.

It shows patients: it stays where the study is. Pictures are on the campaign's grid; nothing is loaded from elsewhere,
and no name, date or identifier of the study is on it.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from html import escape

import torch
from torch import Tensor

from client.enhance.diagnosis import RESEARCH_ONLY
from client.enhance.release import InUse
from client.enhance.series import Enhanced, Options, Shown
from client.enhance.uncertainty import WORDS
from client.generate.pictures import png

MOST_PX = 512
COLOURS = ((0.31, 0.76, 0.97), (1.0, 0.72, 0.30), (0.94, 0.38, 0.57), (0.51, 0.83, 0.38), (0.73, 0.53, 0.99))
"""Of the outlines, by mask; light on grey."""
# The look of the coordinator's reports; written anew, because a client does not know the server.
STYLE = """
:root { --paper: #fcfcfa; --card: #fff; --ink: #1b2126; --soft: #5d6871; --line: #e4e6e6; --accent: #2f66cf;
  --good: #1f7f5c; --good-bg: #e6f4ee; --bad: #b3402f; --bad-bg: #fbebe8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181b; --card: #1a1f23; --ink: #e6e9ea; --soft: #98a3ab;
  --line: #2c3338; --accent: #84abf6; --good: #6bcaa4; --good-bg: #17332a; --bad: #f0907f; --bad-bg: #3a201c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 48px 24px 64px; }
.mark { font-size: 12.5px; letter-spacing: .09em; text-transform: uppercase; color: var(--accent); margin: 0 0 10px; }
h1 { font-size: clamp(28px, 5vw, 42px); line-height: 1.12; letter-spacing: -.018em; margin: 0 0 16px; }
h2 { font-size: 21px; font-weight: 630; margin: 0 0 6px; }
section { margin: 48px 0 0; }
.lead { font-size: 18.5px; max-width: 46em; margin: 0 0 4px; }
.note { color: var(--soft); font-size: 14px; max-width: 60em; margin: 6px 0 14px; overflow-wrap: anywhere; }
.pill { display: inline-block; border-radius: 99px; padding: 2px 11px; font-size: 13px; font-weight: 600; }
.pill.good { color: var(--good); background: var(--good-bg); }
.pill.bad { color: var(--bad); background: var(--bad-bg); }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(200px, 45%), 1fr)); gap: 12px; }
.panels { margin: 0 0 22px; }
figure { margin: 0; }
figure img { display: block; width: 100%; background: #000; border-radius: 5px; image-rendering: pixelated; }
figcaption { font-size: 13.5px; font-weight: 570; margin: 6px 0 0; line-height: 1.35; }
figcaption span { display: block; font-weight: 400; color: var(--soft); }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; margin: 0 0 12px; }
th, td { padding: 7px 14px 7px 2px; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: 550; color: var(--soft); font-size: 13px; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin: 0 6px 0 14px; }
"""


def report(done: Sequence[Enhanced], refused: Counter[str], release: InUse, options: Options) -> str:
    """The page."""
    parts = "".join(_series(number, one, release, options) for number, one in enumerate(done, 1))
    title = f"{len(done)} series enhanced" if len(done) != 1 else "One series enhanced"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Wardround: {escape(title)}</title><style>{STYLE}</style></head><body><main>
<p class="mark">Wardround</p><h1>{escape(title)}</h1>
<p class="lead">{escape(RESEARCH_ONLY)}</p>
<p class="note">By {escape(release.words)}. The originals are as they were; derived images have new identifiers and say
what they were made from. This page shows images of patients: it stays at this hospital.</p>
{_refusals(refused)}{parts}</main></body></html>
"""


def _refusals(refused: Counter[str]) -> str:
    if not refused:
        return ""
    rows = "".join(f"<tr><td>{count}</td><td>{escape(reason)}</td></tr>" for reason, count in refused.most_common())
    return f"<section><h2>Not enhanced</h2><table><tr><th>series</th><th>reason</th></tr>{rows}</table></section>"


def _series(number: int, one: Enhanced, release: InUse, options: Options) -> str:
    names = release.campaign.masks if one.shown and one.shown[0].found_HW is not None else ()
    legend = "".join(
        f'<span class="dot" style="background: rgb({_rgb(place)})"></span>{escape(name)}'
        for place, name in enumerate(names)
    )
    outlines = f"Outlines: {legend}, as the release's recogniser finds them in the enhanced image." if names else ""
    pictures = "".join(_panels(shown, release) for shown in one.shown)
    words = f"{WORDS} {options.draws} draws." if options.draws else "No noise draws were asked for."
    return f"""<section><h2>Series {number} ({escape(one.modality)}, {one.planes} slices) {_flag(one)}</h2>
{_diagnosis(one)}{_outside(one, release)}<p class="note">{outlines}</p>{pictures}
<p class="note">Where the enhancer is unsure: {escape(words)}</p></section>"""


def _flag(one: Enhanced) -> str:
    if one.unusual is None:
        return '<span class="pill bad">not known whether it is like what the release has seen</span>'
    if not one.unusual.unusual:
        return '<span class="pill good">looks like what the release was tested on</span>'
    return f'<span class="pill bad">unlike what the release was tested on: {escape(", ".join(one.unusual.why))}</span>'


def _outside(one: Enhanced, release: InUse) -> str:
    words = []
    if one.clipped_share > 0.001 and release.campaign.data.ingest.intensity.clip:
        words.append(
            f"{100 * one.clipped_share:.1f} % of the pixels lie outside the intensities that the release works on; "
            "there the enhancer saw the end of its scale only, and its correction is small."
        )
    size = release.campaign.data.image_size
    if one.shown and any(a > b for a, b in zip(one.shown[0].before_HW.shape, size, strict=True)):
        words.append(
            f"Masks and scores are of the central {size[0]} x {size[1]} pixels of the release's grid, the field that "
            "its recogniser has learnt with; outside of it nothing was looked for."
        )
    if one.unsegmented:
        words.append(f"No DICOM segmentation: {one.unsegmented}.")
    if release.campaign.enhance.data_consistency:
        words.append("The lines of k-space that a scanner acquired are not in a DICOM image: no data consistency.")
    return f'<p class="note">{escape(" ".join(words))}</p>' if words else ""


def _diagnosis(one: Enhanced) -> str:
    if one.diagnosis is None:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{100 * value:.0f} %</td></tr>"
        for name, value in one.diagnosis["probabilities"].items()
    )
    words = escape(one.diagnosis["calibration"]["words"])
    return f'<table><tr><th>score of</th><th></th></tr>{rows}</table><p class="note">{words}</p>'


def _panels(shown: Shown, release: InUse) -> str:
    before, after = shown.before_HW, shown.after_HW
    change = after - before
    most = max(float(change.abs().max()), 1e-6)
    masks = len(release.campaign.masks)
    panels = [
        ("before", "as acquired, on the release's scale", _outlined(before, None, masks)),
        ("after", "with outlines" if shown.found_HW is not None else "", _outlined(after, shown.found_HW, masks)),
        ("difference", f"blue darker, red brighter; at most {100 * most:.1f} % of the scale", _signed(change / most)),
    ]
    if shown.spread_HW is not None:
        top = max(float(shown.spread_HW.max()), 1e-6)
        panels.append(("unsure", f"up to {100 * top:.2f} % of the scale", _warm(shown.spread_HW / top)))
    figures = "".join(
        f'<figure><img alt="{name}" src="{_uri(image)}"><figcaption>{name}<span>{escape(words)}</span></figcaption>'
        "</figure>"
        for name, words, image in panels
    )
    return f'<p class="note">Slice {shown.plane + 1}</p><div class="panels">{figures}</div>'


def _rgb(place: int) -> str:
    return ", ".join(str(round(255 * part)) for part in COLOURS[place % len(COLOURS)])


def _outlined(image_HW: Tensor, found_HW: Tensor | None, masks: int) -> Tensor:
    image_3HW = image_HW.clamp(0, 1).expand(3, -1, -1).clone()
    for code in range(1, masks + 1 if found_HW is not None else 1):
        assert found_HW is not None
        edge = _outline(found_HW == code)
        colour = torch.tensor(COLOURS[(code - 1) % len(COLOURS)])
        image_3HW[:, edge] = colour[:, None]
    return image_3HW


def _outline(inside_HW: Tensor) -> Tensor:
    """Pixels of a mask with a neighbour outside of it."""
    padded = torch.nn.functional.pad(inside_HW, (1, 1, 1, 1))
    kept = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside_HW & ~kept


def _signed(share_HW: Tensor) -> Tensor:
    """White at 0, blue below, red above."""
    up, down = share_HW.clamp(0, 1), (-share_HW).clamp(0, 1)
    return torch.stack([1 - down, 1 - up - down, 1 - up]).clamp(0, 1)


def _warm(share_HW: Tensor) -> Tensor:
    """Black, red, yellow, white."""
    return torch.stack([(3 * share_HW - place).clamp(0, 1) for place in range(3)])


def _uri(image_3HW: Tensor) -> str:
    step = -(-max(image_3HW.shape[-2:]) // MOST_PX)
    return "data:image/png;base64," + base64.b64encode(png(image_3HW[:, ::step, ::step])).decode()
