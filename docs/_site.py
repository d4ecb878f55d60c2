"""What the site needs beside MkDocs: README as its first page, doctests as code."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add README.md as index.md: links to pages are kept, those to the code become text."""
    files.append(File.generated(config, "index.md", content=as_page(ROOT.joinpath("README.md"))))
    return files


def as_page(path: Path) -> str:
    """A page of the clone, with its links as they are in docs/."""
    text = path.read_text("utf-8").replace("](docs/", "](")
    return re.sub(r"\[([^]]+)\]\((?:ddim_jax/|LICENSE)[^)]*\)", r"\1", text)


class Doctests(griffe.Extension):
    """Doctests in docstrings as code; in Markdown, >>> would be three nested quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Put each doctest, with its output up to an empty line, between fences."""
        if obj.docstring:
            doctest = r"^>>> .*(?:\n.+)*"
            obj.docstring.value = re.sub(
                doctest, r"```pycon\n\g<0>\n```", obj.docstring.value, flags=re.MULTILINE
            )
