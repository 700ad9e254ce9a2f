"""Images of whatever origin, scored as the benchmark's own are: a folder with one file a case.

    FOLDER/SUBJECT/PROMPT-POSITION.png      for example backpack/03-1.png (.jpg, .jpeg or .png)

SUBJECT is a subject's name; PROMPT two digits, the prompt's place, from 00, in the list for the subject's kind (live or
object) of prompts_and_classes.txt; POSITION the place among the images of that prompt, from 0. All images are of one
size, and there is one for every case of the evaluation: 30 subjects x 25 prompts x 4 for DreamBooth.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from dreamcache.dreambooth.cases import Case
from dreamcache.dreambooth.layout import IMAGE_SUFFIXES, some


def given_images(folder: str | Path, cases: Sequence[Case]) -> dict[str, Path]:
    """The image file of every case, by the case's key; this module's docstring has the names.

    Raises:
        FileNotFoundError: when the folder, subjects' folders or images are missing; the message counts and names them.
        ValueError: when there are images too many or two of one case, one is not readable, or sizes differ.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give one with an image a case, SUBJECT/PROMPT-POSITION.png")
    wanted = {f"{case.subject}/{case.prompt_index:02d}-{case.position}": case.key for case in cases}
    subjects = list(dict.fromkeys(case.subject for case in cases))
    if missing := [name for name in subjects if not (folder / name).is_dir()]:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(subjects)} subjects' folders missing: {some(missing)}"
        )
    found: dict[str, Path] = {}
    unknown: list[str] = []
    for path in sorted(path for path in folder.glob("*/*") if path.suffix.lower() in IMAGE_SUFFIXES):
        name = f"{path.parent.name}/{path.stem}"
        if name in found:
            raise ValueError(
                f"{folder}: two images of one case, {found[name].name} and {path.name} in {path.parent.name}"
            )
        if name in wanted:
            found[name] = path
        else:
            unknown.append(f"{path.parent.name}/{path.name}")
    counted = f"{len(wanted)} are asked for, {len(subjects)} subjects by the settings of the evaluation"
    if missing := [name for name in wanted if name not in found]:
        raise FileNotFoundError(f"{folder}: {len(missing)} images missing, such as {some(missing)}; {counted}")
    if unknown:
        raise ValueError(f"{folder}: {len(unknown)} images too many, such as {some(unknown)}; {counted}")
    _check_sizes(folder, list(found.values()))
    return {wanted[name]: path for name, path in found.items()}


def _check_sizes(folder: Path, paths: Sequence[Path]) -> None:
    """Raise ValueError where images differ in size, which happens when two methods' outputs were mixed."""
    sizes: dict[Path, tuple[int, int]] = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes[path] = image.size
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: not a readable image ({error})") from error
    (usual, count), *others = Counter(sizes.values()).most_common()
    if others:
        odd = [f"{path.parent.name}/{path.name} {w} x {h}" for path, (w, h) in sizes.items() if (w, h) != usual]
        raise ValueError(
            f"{folder}: images of different sizes: {count} are {usual[0]} x {usual[1]}, not so {some(odd)}"
        )
