"""Pieces of a self-contained page. Functions whose result goes into the page as it is
escape what they are given; arguments called `body`, `cells` and `caption` are HTML.
"""

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DASH = '<span class="none">–</span>'
# Nothing may be loaded and nothing may run: what a page cannot do needs no review.
_POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
)
_STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #52606d; --line: #dde3e9;
  --paper: #fff; --back: #f4f6f8; --blue: #0072b2; --pale: #e6f1f8; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
    Arial, sans-serif; }
main, header, nav ul { max-width: 60rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; padding-bottom: 1.25rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .9rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
header p { margin: 0; color: var(--soft); font-size: 1.05rem; max-width: 46rem; }
.tiles { display: grid; gap: .75rem; margin: 1.5rem 0 0; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem 1rem; }
.tile dt { font-size: .85rem; color: var(--soft); }
.tile dd { margin: 0; font-size: 1.4rem; font-weight: 650; line-height: 1.3;
  white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile dd small { display: block; font-size: .8rem; font-weight: 400;
  white-space: normal;
  color: var(--soft); }
nav { position: sticky; top: 0; z-index: 1; background: rgba(244, 246, 248, .96);
  border-bottom: 1px solid var(--line); }
nav ul { display: flex; gap: 1.1rem; list-style: none; overflow-x: auto;
  scrollbar-width: none; }
nav a { display: block; padding: .65rem 0; white-space: nowrap; font-size: .9rem;
  color: var(--soft); text-decoration: none; }
nav a:hover, nav a:focus { color: var(--blue); text-decoration: underline; }
section { background: var(--paper); border: 1px solid var(--line);
  border-radius: .6rem; padding: 1.4rem 1.5rem; margin: 1.25rem 0;
  scroll-margin-top: 3.5rem; }
/* Shadows at the sides that hold more. */
.wide { overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 40%, transparent) 0 0 / 2rem 100% local,
  linear-gradient(to left, var(--paper) 40%, transparent) 100% 0 / 2rem 100% local,
  linear-gradient(to right, rgba(31, 41, 51, .16), transparent) 0 0 / .6rem 100%,
  linear-gradient(to left, rgba(31, 41, 51, .16), transparent) 100% 0 / .6rem 100%;
  background-repeat: no-repeat; }
table { border-collapse: collapse; width: 100%; font-size: .93rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .8rem .42rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; font-size: .85rem;
  vertical-align: bottom; border-bottom-width: 2px; }
tbody th { font-weight: 400; }
tr > :last-child { padding-right: 0; }
.n { text-align: right; white-space: nowrap; }
tr.end > * { color: var(--soft); }
tr.sum > * { font-weight: 650; background: var(--pale); }
tr.sum > :first-child { padding-left: .5rem; }
td small { display: block; color: var(--soft); }
sup, sub { font-size: .75em; line-height: 0; }
.none { color: #8492a0; }
.meter { display: flex; align-items: center; gap: .6rem; min-width: 10rem; }
.meter i { flex: 1; height: .55rem; border-radius: .3rem; background: #e4e9ee;
  overflow: hidden; }
.meter b { display: block; height: 100%; background: var(--blue); }
.meter span { min-width: 3.2rem; text-align: right; }
figure { margin: 0 0 1.2rem; }
figure:last-child { margin-bottom: 0; }
figure img, figure video { display: block; max-width: 100%; height: auto; }
figure img.plot { width: 100%; min-width: 21rem; max-width: 40rem;
  margin: 0 auto; }
figure img.natural, figure video.natural { border-radius: .4rem;
  border: 1px solid var(--line); }
.film { display: flex; flex-wrap: wrap; gap: 1.25rem; align-items: flex-start; }
.film figure { margin: 0; }
.film figcaption { contain: inline-size; }
.film figure + figure { flex: 1 1 22rem; }
figcaption, .caption { color: var(--soft); font-size: .88rem; margin: .6rem 0 0; }
.pairs th { width: 16rem; color: var(--soft); overflow-wrap: anywhere; }
.pairs td { overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 650; margin: 1rem 0 .4rem; }
pre { background: var(--back); border: 1px solid var(--line); border-radius: .4rem;
  padding: .8rem 1rem; margin: 0; overflow-x: auto; }
code { font: .9em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
#notes ul { margin: 0; padding-left: 1.2rem; }
#notes li { margin: .3rem 0; }
@media (max-width: 40rem) {
  header { padding-top: 1.5rem; }
  h1 { font-size: 1.5rem; }
  main, header, nav ul { padding-left: .8rem; padding-right: .8rem; }
  section { padding: 1.1rem .9rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .tile { padding: .6rem .75rem; }
  .tile dd { font-size: 1.25rem; }
  .pairs th { width: 9rem; }
  figure .wide.plot { margin: 0 -.9rem; }
  .meter { min-width: 0; }
  .meter i { display: none; }
}
@media print {
  body { background: none; }
  nav { display: none; }
  section { break-inside: avoid; border: 0; padding: 0; }
}
"""


def text(value: Any) -> str:
    """Escaped for text and for quoted attributes."""
    return html.escape(str(value), quote=True)


def number(value: Any, digits: int = 4) -> str:
    """A number at `digits` significant digits; a dash for None and NaN."""
    if value is None or math.isnan(value := float(value)):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(float(f"{value:.{digits - 1}e}"))  # 0.9997 at 3 digits is 1.00
    if (value == int(value) or size >= 10 ** (digits - 1)) and size < 1e7:
        shown = f"{value:,.0f}"
    elif 1e-3 <= size < 1e7:
        shown = f"{value:.{max(digits - 1 - math.floor(math.log10(size)), 0)}f}"
    else:
        mantissa, power = f"{value:.{max(digits - 2, 1)}e}".split("e")
        return f"{mantissa}·10<sup>{int(power)}</sup>".replace("-", "−")
    return shown.replace("-", "−")


def setting(value: Any) -> str:
    """A number somebody chose: as short as it is exact to six digits."""
    return DASH if value is None else f"{float(value):g}".replace("-", "−")


def percent(share: Any, digits: int = 0) -> str:
    """A share in per cent: whole, or with `digits` significant digits below one."""
    share = 100 * float(share)
    if math.isnan(share):
        return DASH
    if digits and abs(share) < 10 ** (digits - 1):
        return f"{number(share, digits)} %"
    return f"{share:,.0f} %".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def meter(share: float) -> str:
    """A bar from 0 to 1 with its value; the bar is cut at both ends, not the value."""
    if math.isnan(share):
        return DASH
    width = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<div class="meter"><i><b style="width:{width:.1f}%"></b></i>'
        f"<span>{share:.2f}</span></div>".replace(">-", ">−")
    )


def table(
    heads: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    caption: str,
    *,
    numeric: Iterable[int] = (),
) -> str:
    """A table that scrolls sideways where the screen is narrow.

    Args:
        heads: cells of the first line, HTML.
        rows: (class, cells as HTML); the first cell names the row.
        caption: below the table, HTML.
        numeric: columns set flush right.
    """
    numeric = set(numeric)

    def cell(tag: str, i: int, body: str) -> str:
        kind = ' class="n"' if i in numeric else ""
        scope = f' scope="{"row" if tag == "row" else "col"}"' if tag != "td" else ""
        name = "td" if tag == "td" else "th"
        return f"<{name}{scope}{kind}>{body}</{name}>"

    head = "".join(cell("col", i, body) for i, body in enumerate(heads))
    lines = [
        (f'<tr class="{kind}">' if kind else "<tr>")
        + "".join(cell("td" if i else "row", i, body) for i, body in enumerate(cells))
        + "</tr>"
        for kind, cells in rows
    ]
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table></div><p class="caption">{caption}</p>'
    )


def pairs(title: str, facts: Mapping[str, Any], *, fold: int | None = None) -> str:
    """Names and values under a title.

    Args:
        title: above them, plain text.
        facts: plain values by name.
        fold: if given, they can be folded away, and more than so many start folded.
    """
    lines = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>'
        for name, value in facts.items()
    )
    body = (
        f'<div class="wide"><table class="pairs"><tbody>{lines}</tbody></table></div>'
    )
    if fold is not None:
        tag = "<details>" if len(facts) > fold else "<details open>"
        summary = f"<summary>{text(title)} ({len(facts)})</summary>"
        return f"{tag}{summary}{body}</details>"
    return f"<h3>{text(title)}</h3>{body}"


def figure(data: bytes, alt: str, caption: str, *, natural: bool = False) -> str:
    """An embedded picture or film; its kind is read from its first bytes.

    Args:
        data: SVG, PNG, GIF, JPEG, WebP or MP4.
        alt: what it shows, for those who do not see it.
        caption: below it.
        natural: keep its own size; a plot fills the width instead.

    Raises:
        ValueError: for another kind of file.
    """
    kind = media_type(data)
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    style = "natural" if natural else "plot"
    if kind.startswith("video/"):
        body = (
            f'<video class="{style}" controls loop muted playsinline src="{source}" '
            f'aria-label="{text(alt)}"></video>'
        )
    else:
        body = f'<img class="{style}" src="{source}" alt="{text(alt)}">'
    return (
        f'<figure><div class="wide {style}">{body}</div>'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def media_type(data: bytes) -> str:
    """MIME type by magic bytes."""
    for magic, kind in (
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"GIF8", "image/gif"),
        (b"\xff\xd8\xff", "image/jpeg"),
    ):
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp":
        return "video/mp4"
    if b"<svg" in data[:1000]:
        return "image/svg+xml"
    raise ValueError(
        f"media starts with {data[:12]!r}; expected SVG, PNG, GIF, JPEG, WebP or MP4."
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def section(name: str, title: str, body: str) -> str:
    """A part of the page that links can point to."""
    return f'<section id="{text(name)}"><h2>{text(title)}</h2>{body}</section>'


def header(title: str, summary: str, tiles: Sequence[tuple[str, str, str]]) -> str:
    """Title, one sentence, and tiles of (label, value as HTML, small print)."""
    cards = "".join(
        f'<div class="tile"><dt>{text(label)}</dt><dd>{value}'
        f"<small>{text(small)}</small></dd></div>"
        for label, value, small in tiles
    )
    lead = f"<p>{text(summary)}</p>" if summary else ""
    tiles_html = f'<dl class="tiles">{cards}</dl>' if cards else ""
    return f"<header><h1>{text(title)}</h1>{lead}{tiles_html}</header>"


def document(
    title: str, head: str, links: Sequence[tuple[str, str]], sections: Sequence[str]
) -> str:
    """The whole document."""
    items = "".join(
        f'<li><a href="#{text(name)}">{text(label)}</a></li>' for name, label in links
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>"
        f'{head}<nav aria-label="Sections"><ul>{items}</ul></nav>'
        f"<main>{''.join(sections)}</main></body></html>\n"
    )
