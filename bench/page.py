"""The page of a benchmark: the machine, and every table as Markdown."""

from collections.abc import Iterator
from typing import Any

from .rounds import Row

_ABOUT = {
    "overhead": "A step of the sampler around a network that is one multiplication.",
    "memory": "XLA's plan of the compiled programs, besides arguments and results; and what "
    "differentiation keeps, with and without rematerialisation.",
    "peak": "A process that does nothing else, from its start to its end, libraries included.",
    "scaling": "As many images on each device; 1 is perfect. The cores of a CPU are its devices.",
    "loop": "Steps fed by the training loop's pipeline, against bare calls of the compiled step on "
    "one batch. Well above 1, the host is too slow.",
    "grid": "The cells of an ablation by its one program, padded to the largest S.",
    "start": "From the start of a process until its first images are written.",
    "growth": "Each measured in a process of its own.",
}
_NETWORK = (
    "Images per second of the network alone, of sampling and of training; and the share of what "
    "large matrix products of the same type reach here. Random weights, made-up images. Training "
    "is not compared with a peer whose gradient differs from ours."
)


def page(machine: dict[str, Any], tables: dict[str, list[Row]], command: str) -> str:
    """The whole page.

    >>> tables = {"loop, digits": [Row("loop ÷ bare", 1.0, "")]}
    >>> page({"devices": "1 × cpu"}, tables, "bench").splitlines()[-1]
    '| loop ÷ bare | 1 |  |'
    """
    lines = ["# Measured speed and memory", "", f"`python -m {command}`", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in machine.items()]
    for title, rows in tables.items():
        about = _ABOUT.get(title.partition(",")[0], _NETWORK)
        lines += ["", f"## {title}", "", about, "", *_table(rows)]
    return "\n".join(lines) + "\n"


def _table(rows: list[Row]) -> Iterator[str]:
    compared = any(row.ratio is not None for row in rows)
    yield "| measure | value | unit |" + (" diffusers | times better |" if compared else "")
    yield "|---|---|---|" + ("---|---|" if compared else "")
    for row in rows:
        peer = "" if row.peer is None else f"{row.peer:,.4g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        line = f"| {row.measure} | {row.value:,.4g} | {row.unit} |"
        yield line + (f" {peer} | {ratio} |" if compared else "")
