"""The files of a benchmark folder, read strictly; `cases` has the layout and makes subjects and cases of them."""

import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence, Set
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from shards.files import KEY_PATTERN

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIX = ".mask.png"

_PROMPT_LINE = re.compile(r"""^(['"])(?P<prompt>.*)\1\.format\(unique_token,\s*class_token\),?$""")
_NAME = re.compile(r"[0-9a-z_]+")


def read_prompts_and_classes(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Read DreamBooth's prompts_and_classes.txt: class words by subject, and prompts by kind, "object" and "live".

    Prompts come back with {class} where the class word belongs, the unique token dropped.

    Raises:
        ValueError: when a section is missing or a prompt's line is not of the form that the file's format has.
    """
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {}
    section = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line = line.strip()
        if line in ("", "Prompts", "prompt_list = [", "]", "subject_name,class"):
            continue
        if line in ("Classes", "Object Prompts", "Live Subject Prompts"):
            section = line
        elif section == "Classes" and line.count(",") == 1:
            name, class_word = next(csv.reader([line]))
            classes[name.strip()] = class_word.strip()
        elif section.endswith("Prompts") and (match := _PROMPT_LINE.match(line)) and "{0} {1}" in match["prompt"]:
            kind = "live" if section.startswith("Live") else "object"
            prompts.setdefault(kind, []).append(match["prompt"].replace("{0} {1}", "{class}"))
        else:
            raise ValueError(f"{path}:{number}: cannot read {line!r} in section {section or 'none'!r}")
    if not classes or prompts.keys() != {"object", "live"}:
        raise ValueError(
            f"{path}: needs the sections Classes, Object Prompts and Live Subject Prompts, none of them empty"
        )
    return classes, prompts


def read_table(path: Path | Traversable) -> dict[str, Any]:
    """Read and check a subjects.json, in a folder or in the package.

    Raises:
        ValueError: when it is not as the layout has it; the message names the file and what is wrong.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        seen = set()
        for entry in table["subjects"]:
            unknown = entry.keys() - {"name", "class", "live", "reference", "palette_group"}
            if unknown or not _NAME.fullmatch(entry["name"]) or entry["name"] in seen:
                raise ValueError(f"subject {entry['name']!r}: {unknown or 'a name is [0-9a-z_]+ and stands once'}")
            if not isinstance(entry["live"], bool) or not entry["class"] or "/" in entry["reference"]:
                raise ValueError(f"subject {entry['name']!r}: live is true or false, reference a file of its folder")
            seen.add(entry["name"])
        if not seen or not isinstance(table["benchmark"], str):
            raise ValueError("needs a benchmark name and at least one subject")
        if not _are_prompts(table.get("prompts")):
            raise ValueError('prompts are {"object": [...], "live": [...]}, two lists of texts')
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]!r} is missing") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return table


def _are_prompts(found: object) -> bool:
    if not isinstance(found, dict):
        return found is None  # they are in the prompts file
    lists = all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in found.values())
    return found.keys() == {"object", "live"} and lists


def read_digests(path: Path | Traversable) -> dict[str, str]:
    """Read a digest list as sha256sum writes it: digests by file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if malformed := [line for line in lines if not re.fullmatch(r"[0-9a-f]{64}  \S+", line)]:
        raise ValueError(f"{path}: not a line of sha256sum: {malformed[0]!r}")
    return {line[66:]: line[:64] for line in lines}


def find_images(folder: Path, references: Mapping[str, str], expected: Set[str] | None) -> dict[str, list[Path]]:
    """Find every subject's images, in order of name.

    Args:
        folder: the benchmark's folder.
        references: the reference's file name by subject.
        expected: `SUBJECT/FILE` of all images that there must be, where that is known.

    Raises:
        FileNotFoundError: when subject folders or images are missing; the message names them.
        ValueError: when there are images that `expected` does not have, or whose names cannot be records' keys.
    """
    if missing := [name for name in references if not (folder / name).is_dir()]:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(references)} subject folders missing: {some(missing)}"
        )
    images = {
        name: sorted(
            path
            for path in (folder / name).iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.endswith(MASK_SUFFIX)
        )
        for name in references
    }
    found = {f"{name}/{path.name}" for name, paths in images.items() for path in paths}
    wanted = {f"{name}/{file}" for name, file in references.items()} | set(expected or ())
    if missing := sorted(wanted - found):
        raise FileNotFoundError(f"{folder}: {len(missing)} of {len(wanted)} images missing: {some(missing)}")
    if expected is not None and (unknown := sorted(found - expected)):
        raise ValueError(f"{folder}: {len(unknown)} images too many, not of the benchmark: {some(unknown)}")
    keys: dict[str, list[str]] = {}
    for file in sorted(found):
        keys.setdefault(image_key(*file.split("/")), []).append(file)
    if unfit := [file for key, files in keys.items() if not KEY_PATTERN.fullmatch(key) for file in files]:
        raise ValueError(
            f"{folder}: rename {len(unfit)} images, short and of 0-9 a-z _ - before the suffix: {some(unfit)}"
        )
    if twice := [" and ".join(files) for files in keys.values() if len(files) > 1]:
        raise ValueError(f"{folder}: rename images that differ in their suffixes alone: {some(twice)}")
    return images


def image_key(subject: str, file: str) -> str:
    """The key of a real image, `SUBJECT-STEM`, by which masks and embeddings of it are named."""
    return f"{subject}-{Path(file).stem}"


def verify_images(folder: Path, images: Mapping[str, Sequence[Path]], known: Mapping[str, Mapping[str, str]]) -> str:
    """Compare all images with the list of digests that fits best, and return that list's name.

    Raises:
        ValueError: when images differ from their digests; the message counts and names them.
    """
    found = {
        f"{name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for name, paths in images.items()
        for path in paths
    }
    altered = {
        name: sorted(file for file, digest in found.items() if digests[file] != digest)
        for name, digests in known.items()
    }
    best = min(altered, key=lambda name: len(altered[name]))
    if altered[best]:
        named = [f"{file} (sha256 {found[file][:12]}, not {known[best][file][:12]})" for file in altered[best]]
        raise ValueError(
            f"{folder}: {len(named)} of {len(found)} images altered, by the digests of the {best} images: {some(named)}"
        )
    return best


def some(names: Sequence[str]) -> str:
    """The first three of the names, and how many more there are."""
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
