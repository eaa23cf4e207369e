"""Pages of the site that are written from the code: commands, settings and recipes."""

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from poa.cli import app as command_line
from poa.config.pretraining import Config
from poa.config.resolve import recipe_summary, recipes

PAGES = Path(__file__).parents[1] / "reference"
EXAMPLE = re.compile(r"^Example: (poa .+?)(?:\.\s([A-Z].+?))?(?=\n\n)", re.MULTILINE | re.DOTALL)
Schema = dict[str, Any]
"""JSON schema of a setting, as pydantic writes it."""


def setup(sphinx: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for documents."""
    sphinx.connect("config-inited", lambda *_: write_pages(PAGES))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(folder: Path) -> None:
    """Write all pages anew; one that has not changed keeps its time, so that Sphinx does not read it again."""
    pages = {"settings.md": settings_page(), "recipes.md": recipes_page(), **command_pages()}
    for old in set(folder.rglob("*.md")) - {folder / name for name in pages}:
        old.unlink()
    for name, text in pages.items():
        page = folder / name
        page.parent.mkdir(parents=True, exist_ok=True)
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def command_pages() -> dict[str, str]:
    """A page for each command, and one that lists them."""
    text = command_line.generate_docs(output_format="markdown")
    pages = {}
    for section in re.split(r"^## (?=poa )", text, flags=re.MULTILINE)[1:]:
        name = section.partition("\n")[0].removeprefix("poa ")
        if not name.startswith("-"):
            pages[f"commands/{name}.md"] = "# " + EXAMPLE.sub(example, section.replace("\n### ", "\n## "))
    listed = "\n".join(page.removesuffix(".md") for page in pages)
    pages["commands.md"] = f"# Commands\n\n`poa COMMAND --help` prints the same.\n\n```{{toctree}}\n{listed}\n```\n"
    return pages


def example(found: re.Match[str]) -> str:
    """The example of a help as a block of code, and what is said after it."""
    command, rest = found[1].replace("\n", " \\\n    "), found[2] or ""
    return f"```bash\n{command}\n```\n\n{rest}"


def recipes_page() -> str:
    """All recipe files, each under its name."""
    parts = ["# Recipes\n\n`poa pretrain --recipe NAME --print-config` prints all settings of one.\n"]
    for name in recipes():
        text = (resources.files("poa") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        parts.append(f"## {name}\n\n{recipe_summary(name)}.\n\n```yaml\n{text}```\n")
    return "\n".join(parts)


def settings_page() -> str:
    """All settings of a pre-training, section by section."""
    schema = Config.model_json_schema()
    sections = schema["$defs"]
    parts = [
        "# Settings of a pre-training\n\n"
        "Give a setting as a flag (`--views.global-size 96`), in a file (`views: {global_size: 96}`) or in Python "
        '(`views={"global_size": 96}`). The defaults are those of the published ViT run; a recipe replaces them.\n'
    ]
    plain = {name: of for name, of in schema["properties"].items() if "$ref" not in of}
    parts.extend(["## General\n", *(entry(name, of) for name, of in plain.items())])
    for name, of in schema["properties"].items():
        if "$ref" in of:
            section = sections[of["$ref"].rsplit("/", 1)[1]]
            parts.append(f"## {name.capitalize()}\n\n{section.get('description', '')}\n")
            parts.extend(entry(f"{name}.{setting}", its) for setting, its in section["properties"].items())
    return "\n".join(parts)


def entry(name: str, of: Schema) -> str:
    """A setting: its name, meaning, default and what is allowed."""
    default = f"Default: `{of['default']}`. " if of.get("default") not in (None, "") else ""
    meaning = " ".join(of.get("description", "").split())
    return f"`{name}`\n: {meaning}\n  {default}Allowed: {allowed(of)}.\n"


def allowed(of: Schema) -> str:
    """What a setting may be, in words."""
    if "enum" in of or "const" in of:
        return ", ".join(f"`{value}`" for value in of.get("enum", [of.get("const")]))
    if "anyOf" in of:
        return " or ".join(allowed(one) for one in of["anyOf"])
    if of.get("type") == "array":
        if "prefixItems" in of:
            return f"{len(of['prefixItems'])} values, each {allowed(of['prefixItems'][0])}"
        return f"values, each {allowed(of['items'])}"
    kinds = {"null": "nothing", "boolean": "yes or no", "string": "text", "integer": "whole number", "number": "number"}
    return " ".join([kinds[of["type"]], *bounds(of)])


def bounds(of: Schema) -> Iterator[str]:
    """Limits of a number, in words."""
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    for key, word in words.items():
        if key in of:
            yield f"{word} {of[key]:g}"
