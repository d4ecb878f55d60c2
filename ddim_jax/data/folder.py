"""Folders of images: what torchvision's ImageFolder reads, and what else people have.

ROOT/cat/1.png        ROOT/dog/2.png         classes, the folders in sorted order
ROOT/train/cat/1.png  ROOT/test/cat/2.png    splits, if ROOT or ROOT/train is given
ROOT/1.png            ROOT/2.png             images without classes
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..files import digest
from .dataset import Dataset, MissingSplit, Shape, Split, in_memory, some
from .decode import ImageFile, decode_files, readable

_SUFFIXES = {
    ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}  # fmt: skip
_LITTER = {"__macosx", "thumbs.db", "desktop.ini"}  # as well as hidden files, .DS_Store for one
_TRAIN, _TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
_Files = list[ImageFile]


def open_folder(directory: str, image_shape: Shape, split: Split) -> Dataset:
    """The images of a folder or of one of its splits."""
    root = os.path.expanduser(directory)
    if not os.path.isdir(root):
        raise ValueError(
            f"{readable(root) or 'the path'} is not a directory; give folder:PATH, the path of a "
            "directory of images."
        )
    images, others = _scan(root)
    splits, notes = _splits(root, images)
    train = splits["train"]
    if not images:
        there = f"; it has {some(others)}" if others else ""
        raise ValueError(
            f"{readable(root)} holds no images ({', '.join(sorted(_SUFFIXES))}){there}; "
            "give the directory that has them."
        )
    if split not in splits:
        raise MissingSplit(f"{readable(root)} has no test split: no folder test or val.")
    if others:
        notes.append(f"left out, not being images: {some(others)}")
    classes, files = _classes(train), splits[split]
    if not classes and any(len(file.name) > 1 for file in train):
        notes.append("there are no classes, since some images are in no subfolder")
    if not _known(files, classes):
        classes = ()  # a test split without folders, or with others than train has
    labels = [classes.index(file.name[0]) for file in files] if classes else []
    arrays, more = decode_files(files, image_shape, f"{os.path.abspath(root)} {split}")
    # Names and sizes, but not times, which a copy of the folder changes.
    fingerprint = digest([(file.name, file.size) for file in files])
    return in_memory(
        readable(root), arrays, image_shape, None, labels, classes, fingerprint, (*notes, *more)
    )


def _scan(root: str) -> tuple[_Files, list[str]]:
    """The images below a folder in the order of their names, and the names of other files."""
    images, others = [], []
    for names, path in _walk(root, (), frozenset([os.path.realpath(root)])):
        if os.path.splitext(path)[1].lower() not in _SUFFIXES:
            others.append("/".join(names))
            continue
        size = modified = -1
        try:
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):  # reading a pipe would never end
                size, modified = status.st_size, status.st_mtime_ns
        except OSError:  # a link to nothing, which is named with the broken files
            pass
        images.append(ImageFile(path, names, size, modified))
    return sorted(images, key=lambda file: file.name), sorted(others)


def _walk(
    path: str, names: tuple[str, ...], above: frozenset[str]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """All files; links are followed, but not to a folder that they are in."""
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(
            f"{readable(path)} cannot be read ({error.strerror}); change its permissions."
        ) from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in _LITTER:
            continue
        below = (*names, readable(entry.name))
        if not entry.is_dir(follow_symlinks=False) and not (
            entry.is_symlink() and os.path.isdir(entry.path)
        ):
            yield below, entry.path
        elif (real := os.path.realpath(entry.path)) not in above:
            yield from _walk(entry.path, below, above | {real})


def _splits(root: str, images: _Files) -> tuple[dict[str, _Files], list[str]]:
    """The files of each split, with their names inside it, and notes."""
    below: dict[str, _Files] = {}
    for file in images:
        if len(file.name) > 1:
            inside = file._replace(name=file.name[1:])
            below.setdefault(file.name[0], []).append(inside)
    train = next((name for name in below if name.lower() in _TRAIN), None)
    tests = [name for name in below if name.lower() in _TEST]
    if train and (tests or len(below) == 1):
        held_out = {name: below[name] for name in sorted(tests, key=str.lower)}
        splits = {"train": below[train]}
    else:
        train, splits = None, {"train": images}
        held_out = _siblings(root) if Path(os.path.abspath(root)).name.lower() in _TRAIN else {}
    # A split that has the classes of train goes before one that has none, as some tests do.
    known = _classes(splits["train"])
    chosen = max(held_out, default=None, key=lambda name: _known(held_out[name], known))
    if chosen:
        splits["test"] = held_out[chosen]
    outside = len(images) - len(splits["train"]) - (len(splits.get("test", [])) if train else 0)
    used = " and ".join(filter(None, (train, chosen)))
    notes = [f"left out, not being in {used}: {outside} images"] if outside else []
    return splits, notes


def _siblings(root: str) -> dict[str, _Files]:
    """The images of the test splits beside a folder that is named train."""
    parent = os.path.dirname(os.path.abspath(root))
    names = sorted((name for name in os.listdir(parent) if name.lower() in _TEST), key=str.lower)
    found = {name: os.path.join(parent, name) for name in names}
    scans = {name: _scan(path)[0] for name, path in found.items() if os.path.isdir(path)}
    return {name: images for name, images in scans.items() if images}


def _classes(files: _Files) -> tuple[str, ...]:
    """The sorted names of the folders, if every image is in one."""
    nested = all(len(file.name) > 1 for file in files)
    return tuple(sorted({file.name[0] for file in files})) if nested else ()


def _known(files: _Files, classes: tuple[str, ...]) -> bool:
    """Whether every image is in a folder of one of the classes."""
    return all(len(file.name) > 1 and file.name[0] in classes for file in files)
