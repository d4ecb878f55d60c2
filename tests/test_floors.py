"""The architecture: five floors, a module imports only from floors below it, and `import ddim_jax` stays light."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

import ddim_jax

PACKAGE = Path(__file__).parent.parent / "ddim_jax"
FLOORS = {"diffusion": 1, "cli": 2, "config": 2, "devices": 2, "generation": 2, "images": 2, "metrics": 2, "data": 2, "model": 2,
          "training": 3, "evaluation": 4, "bench": 5}  # fmt: skip
OWNERS = {"flax": "ddim_jax.model.unet", "orbax": "ddim_jax.training.checkpoint"}


def imports(path):
    """The absolute names of the modules that a file imports, at its top or inside a function."""
    package = ["ddim_jax", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


def room(module):
    """ddim_jax.diffusion.forward → diffusion."""
    return module.split(".")[1] if module.startswith("ddim_jax.") else None


MODULES = {
    ".".join(["ddim_jax", *path.relative_to(PACKAGE).with_suffix("").parts]): path
    for path in PACKAGE.rglob("*.py")
}


def test_every_room_has_a_floor():
    rooms = {room(module) for module in MODULES} - {"__init__"}
    assert rooms == FLOORS.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_floors_below(module):
    # On one floor, a package may use a plain module that uses nothing of that floor itself: config, devices, images.
    leaves = {other for other in FLOORS if (PACKAGE / f"{other}.py").exists()
              and all(FLOORS.get(room(name), 0) < FLOORS[other] for name in imports(PACKAGE / f"{other}.py"))}  # fmt: skip
    here = room(module)
    floor = FLOORS.get(here, 1)  # ddim_jax/__init__.py gives floor 1
    for name in imports(MODULES[module]):
        there = room(name)
        if there is None or there == here:
            continue
        assert (
            FLOORS[there] < floor
            or (FLOORS[there] == floor and there in leaves and here != "__init__")
            or (here == "__init__" and there == "diffusion")
        ), f"{module} (floor {floor}) imports {name} (floor {FLOORS[there]})"


@pytest.mark.parametrize("library", OWNERS)
def test_one_file_owns_a_library(library):
    users = [
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name in imports(path))
    ]
    assert users == [OWNERS[library]]


def test_importing_the_package_needs_only_jax_numpy_and_jaxtyping():
    code = "import sys, ddim_jax; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
    )
    heavy = {
        "flax",
        "optax",
        "orbax",
        "grain",
        "tensorflow_datasets",
        "tensorflow",
        "torch",
        "matplotlib",
        "PIL",
        "rich",
        "tyro",
    }
    assert not loaded & heavy


def test_shapes_are_checked_at_every_call():
    """By the import hook of tests/conftest.py."""
    with pytest.raises(jaxtyping.TypeCheckError):
        ddim_jax.initial_noise(np.zeros((3, 2)), (8, 8, 1))  # no keys


def test_every_public_name_is_exported():
    assert all(hasattr(ddim_jax, name) for name in ddim_jax.__all__)
    assert len(set(ddim_jax.__all__)) == len(ddim_jax.__all__)


FUNCTIONS = [name for name in ddim_jax.__all__ if inspect.isfunction(getattr(ddim_jax, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_are_what_a_reader_needs(name):
    function = getattr(ddim_jax, name)
    text = inspect.getdoc(function)
    assert text.splitlines()[0].endswith(".")
    assert "Equation:" in text
    assert "Returns:" in text
    assert ">>>" in text
    for argument in inspect.signature(function).parameters:
        assert f"\n    {argument}: " in text, argument
    if "raise ValueError" in inspect.getsource(function):
        assert "Raises:" in text
