"""The page of all pictures: plain HTML that needs nothing but the files beside it."""

import html as markup
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from poa.files import whole_file
from poa.text import one_line

STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #666; --paper: #fafafa; --line: #ddd; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a3a3a3; --paper: #1b1b1d; --line: #3a3a3d; } }
body { margin: 0 auto; padding: 1.2rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
nav a { margin-right: .9rem; }
a { color: inherit; }
.soft, figcaption { color: var(--soft); font-size: .92rem; overflow-wrap: anywhere; }
figure { margin: 0 0 1.2rem; border: 1px solid var(--line); border-radius: .4rem; overflow: hidden; }
figcaption { padding: .35rem .7rem; }
.scroll { overflow-x: auto; background: #fff; }
.scroll img { display: block; max-width: 100%; height: auto; }
@media (max-width: 40rem) { .scroll img { max-width: none; width: 40rem; } }
""".strip()
"""Of pages that are read, in light and dark."""


class Picture(NamedTuple):
    """Name of a file beside the page, and what it shows; the caption is also the text of screen readers."""

    file: str
    caption: str


class Section(NamedTuple):
    """Pictures of one kind."""

    name: str
    """For links."""
    title: str
    text: str
    """What is shown, and how to read it."""
    notes: Sequence[str]
    """What could not be shown, and why."""
    pictures: Sequence[Picture]


def escape(text: str) -> str:
    """Text, which may hold names, as HTML."""
    return markup.escape(one_line(text))


def page(title: str, about: str, body: str, *, policy: str = "", style: str = STYLE) -> str:
    """A page of HTML: its title and what it is about, as text, before its body; ``policy`` is that of its security."""
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n' if policy else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{head}<title>{escape(title)}</title>
<style>
{style}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="soft">{escape(about)}</p>
{body}
</body>
</html>
"""


def html(title: str, about: str, sections: Sequence[Section]) -> str:
    """The page; ``about`` names the networks and images."""
    links = " ".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections)
    return page(title, about, "\n".join([f"<nav>{links}</nav>", *map(_section, sections)]))


def _section(section: Section) -> str:
    notes = "".join(f'<p class="soft">{escape(note)}</p>\n' for note in section.notes)
    figures = "\n".join(map(_figure, section.pictures))
    return f'<h2 id="{section.name}">{escape(section.title)}</h2>\n<p>{escape(section.text)}</p>\n{notes}{figures}'


def _figure(picture: Picture) -> str:
    file, caption = quote(picture.file), escape(picture.caption)
    image = f'<a href="{file}"><img src="{file}" alt="{caption}" loading="lazy"></a>'
    return f'<figure><div class="scroll">{image}</div><figcaption>{caption}</figcaption></figure>'


def write(folder: Path, title: str, about: str, sections: Sequence[Section]) -> Path:
    """Write ``index.html``, which is there whole or not at all."""
    path = folder / "index.html"
    with whole_file(path) as temporary:
        temporary.write_text(html(title, about, sections), encoding="utf-8")
    return path
