"""The page as one file of HTML: the files of this folder put together, with all that is shown as JSON inside."""

import json
from base64 import b64encode
from dataclasses import asdict
from hashlib import sha256
from importlib.resources import files

from poa.pictures.page import escape
from poa.report.content import Content

SCRIPTS = ("charts.js", "choice.js", "scatter.js", "explorer.js")
"""In their order, in which they become one script."""


def html(title: str, about: str, content: Content) -> str:
    """The page. It runs its own script only, and no request leaves it: its security policy allows none."""
    style, script = _text("page.css"), "".join(map(_text, SCRIPTS))
    parts = {
        "STYLE_HASH": _hash(style),
        "SCRIPT_HASH": _hash(script),
        "STYLE": style,
        "SCRIPT": script,
        "TITLE": escape(title),
        "ABOUT": escape(about),
        "CONTENT": data(content),
    }
    between = _text("page.html").split("@")  # text, name of a part, text, ...
    return "".join(parts[each] if number % 2 else each for number, each in enumerate(between))


def data(content: Content) -> str:
    """All that is shown as JSON in which no text can end the script around it: ``<`` is written as an escape."""
    return json.dumps(asdict(content), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _text(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As security policies name a style or a script."""
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()
