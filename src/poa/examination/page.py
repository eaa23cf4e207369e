"""The report as one page of HTML: numbers, and the first images of each kind of finding."""

import io
from base64 import b64encode
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from poa.config.examination import Kind
from poa.data.channels import image_of
from poa.data.loader import read_or_none
from poa.errors import counted
from poa.examination.findings import Findings
from poa.examination.summary import MEANINGS, facts, flags
from poa.pictures.page import STYLE, escape, page

SHOWN, LISTED, CLASSES = 24, 200, 200
"""Pictures and names of a kind of finding, and classes, on the page."""
SIDE = 128
"""Of pictures, in pixels."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MORE = """
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .95rem; }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.name { overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: .4rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .7rem; margin: .6rem 0; }
.grid figure { margin: 0; display: flex; flex-direction: column; }
.pair { display: flex; gap: 2px; background: var(--line); justify-content: center; }
.pair img { flex: 1 1 0; min-width: 0; height: 8rem; object-fit: contain; background: #8884; }
.small { image-rendering: pixelated; }
.bar { display: block; height: .7rem; border-radius: .2rem; background: #2f6fb5; }
details { margin: .4rem 0 1rem; }
summary { cursor: pointer; }
""".strip()


def html(found: Findings) -> str:
    """The page. It loads nothing and runs nothing: its security policy allows neither."""
    title = f"Images of {found.index.source}"
    kinds = "\n".join(_kind(found, kind) for kind, rows in found.rows.items() if len(rows))
    body = f"""{_table(("finding", "images", "what it means"), _overview(found))}
<h2>Channels</h2>
<p>Mean and standard deviation over all images that can be read, as flags of poa pretrain:</p>
<pre>{escape(flags(found))}</pre>
<h2>All images</h2>
{_table(("", ""), ((escape(name), escape(text)) for name, text in facts(found).items()))}
{_classes(found.class_counts())}
{kinds}"""
    about = f"{counted(len(found.index), 'image')}; {len(found.kept):,} of them to keep."
    return page(title, about, body, policy=_POLICY, style=f"{STYLE}\n{_MORE}")


def _overview(found: Findings) -> Iterable[tuple[str, str, str]]:
    for kind, rows in found.rows.items():
        name = f'<a href="#{kind}">{kind}</a>' if len(rows) else kind
        yield name, f"{len(rows):,}", escape(MEANINGS[kind].format(**dict(found.settings)))


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = ("<tr>" + "".join(f'<td class="{_of(cell)}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{top}</tr>' if any(heads) else ''}\n" + "\n".join(lines) + "\n</table>"


def _of(cell: str) -> str:
    return "number" if cell.replace(",", "").isdigit() else "text"


def _classes(counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    most = max(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ordered if len(ordered) <= CLASSES else [*ordered[: CLASSES // 2], *ordered[-CLASSES // 2 :]]
    rows = (
        (
            escape(name or "(no label)"),
            f"{count:,}",
            f'<span class="bar" style="width: {max(1, round(160 * count / most))}px"></span>',
        )
        for name, count in shown
    )
    left = len(ordered) - len(shown)
    half = CLASSES // 2
    rest = f"<p>The {half} largest and the {half} smallest; {left:,} between them are not shown.</p>"
    return f"<h2>Classes</h2>\n{rest if left else ''}{_table(('class', 'images', ''), rows)}"


def _kind(found: Findings, kind: Kind) -> str:
    rows = found.rows[kind]
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int))]
    figures = "" if kind in ("unreadable", "truncated") else "".join(_figure(found, kind, int(i)) for i in chosen)
    names = "".join(
        f'<tr><td class="name">{escape(found.index.name(i))}</td><td>{escape(found.detail(kind, i))}</td></tr>'
        for i in map(int, rows[:LISTED])
    )
    some = f"The first {LISTED} of {len(rows):,} names; a report that ends in .csv has all"
    number = some if len(rows) > LISTED else "All names"
    text = escape(MEANINGS[kind].format(**dict(found.settings)))
    return (
        f'<h2 id="{kind}">{kind}: {len(rows):,}</h2>\n<p>{text}</p>\n<div class="grid">{figures}</div>\n'
        f"<details><summary>{number}</summary><table>{names}</table></details>"
    )


def _figure(found: Findings, kind: Kind, i: int) -> str:
    """An image, after the one that it is a copy of."""
    pair = (int(found.of[i]), i) if kind in ("duplicate", "near-duplicate") else (i,)
    images = "".join(_image(found, each) for each in pair)
    caption = escape(f"{found.index.name(i)}: {found.detail(kind, i)}")
    return f'<figure><div class="pair">{images}</div><figcaption>{caption}</figcaption></figure>\n'


def _image(found: Findings, i: int) -> str:
    pixels = read_or_none(found.index, i)
    if pixels is None:
        return ""
    image = image_of(pixels)
    small = ' class="small"' if max(image.size) <= SIDE // 2 else ""
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG" if small else "JPEG")
    kind = "png" if small else "jpeg"
    content = b64encode(file.getvalue()).decode()
    return f'<img{small} alt="{escape(found.index.name(i))}" src="data:image/{kind};base64,{content}">'
