"""What makes our documents and docstrings, which are read on their own too, pages of the site."""

import re
import textwrap

from sphinx.application import Sphinx

ELSEWHERE = {"../benchmarks/README.md": "project/benchmarks.md", "../CONTRIBUTING.md": "project/contributing.md"}
"""Documents outside of this folder, as its documents link to them, and their pages."""
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def setup(sphinx: Sphinx) -> dict[str, bool]:
    """Connect to what Sphinx reads."""
    sphinx.connect("source-read", follow_links)
    sphinx.connect("autodoc-process-docstring", blocks_of_code, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def follow_links(_: Sphinx, name: str, source: list[str]) -> None:
    """Let links to documents outside of this folder lead to their pages."""
    up = "../" * name.count("/")
    for document, page in ELSEWHERE.items():
        source[0] = source[0].replace(f"]({up}{document}", f"]({up}{page}")


def blocks_of_code(_: Sphinx, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    """Write Markdown's fences in docstrings as directives."""
    text = "\n".join(lines)
    if "```" in text:
        lines[:] = FENCE.sub(directive, text).splitlines()


def directive(found: re.Match[str]) -> str:
    """A block of code as reStructuredText has it."""
    indent, language, code = found.groups()
    return f"{indent}.. code-block:: {language}\n\n{textwrap.indent(textwrap.dedent(code), indent + '   ')}"
