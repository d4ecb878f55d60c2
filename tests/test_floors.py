"""The architecture: seven floors, a module imports only from floors below it, and `import
ddim_jax` stays light."""

import ast
import inspect
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

import ddim_jax

PACKAGE = Path(__file__).parent.parent / "ddim_jax"
FLOORS = {
    "diffusion": 1, "metrics": 1,
    "devices": 2, "download": 2, "files": 2, "images": 2, "processes": 2, "progress": 2,
    "runtime": 2, "settings": 2,
    "architecture": 3, "config": 3, "sampler": 3,
    "model": 4,
    "data": 5, "features": 5,
    "training": 6,
    "evaluation": 7,
    "commands": 8,  # the door
}  # fmt: skip
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


def package(module):
    """The folder that a module lies in: modules of one may import each other."""
    return MODULES[module].parent


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_floors_below_and_from_its_own_package(module):
    floor = FLOORS.get(room(module), 2)  # ddim_jax/__init__.py gives floor 1
    for name in imports(MODULES[module]):
        if room(name) is None:
            continue
        own = name in MODULES and package(name) == package(module)
        assert FLOORS[room(name)] < floor or own, f"{module} imports {name}"


def test_no_module_imports_itself_by_a_detour():
    graph = {module: set(imports(path)) & MODULES.keys() for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # CycleError names the circle


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
    assert ">>>" in text
