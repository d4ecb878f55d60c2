"""What the site needs beside MkDocs: README and the notebook as pages, doctests as code."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add README.md as index.md, and tutorial.ipynb as tutorial.md with its figures."""
    files.append(File.generated(config, "index.md", content=as_page(ROOT / "README.md")))
    text, figures = notebook(ROOT / "docs" / "tutorial.ipynb")
    if config.repo_url:
        place = config.repo_url.removeprefix("https://github.com/").rstrip("/")
        colab = "https://colab.research.google.com"
        badge = f"[![Open in Colab]({colab}/assets/colab-badge.svg)]"
        text = f"{badge}({colab}/github/{place}/blob/main/docs/tutorial.ipynb)\n\n{text}"
        text = text.replace("https://github.com/OWNER/ddim_jax", config.repo_url)
    files.append(File.generated(config, "tutorial.md", content=text))
    for name, content in figures.items():
        files.append(File.generated(config, name, content=content))
    return files


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """The cells of an executed notebook as a page, and its figures as files."""
    parts: list[str] = []
    figures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        outputs = cell.get("outputs", [])
        printed = "".join("".join(output.get("text", [])) for output in outputs)
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
        for output in outputs:
            if "image/png" in output.get("data", {}):
                name = f"{path.stem}_{len(figures) + 1}.png"
                figures[name] = base64.b64decode(output["data"]["image/png"])
                parts.append(f"![the figure that the cell above draws]({name})")
    return "\n\n".join(parts), figures


def as_page(path: Path) -> str:
    """A page of the clone: links to docs/ are kept, those to the code become text."""
    text = path.read_text("utf-8").replace("](docs/", "](")
    text = text.replace("](tutorial.ipynb)", "](tutorial.md)")
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
