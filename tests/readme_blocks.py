"""What the documents show to be run: their blocks of commands and Python, and the names that stand in their sentences.

A block is fenced, or indented by four columns more than its list. An HTML comment before it, which readers do not see,
says what is not true of every block:

    <!-- only checked: REASON -->   not run here, only compared with what the programs understand
    <!-- with the miniature -->     Python, run with the miniature's models on the CPU in place of those that it names
    <!-- text -->                   nothing to run
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md", "docs/datasets.md", "docs/training.md", "docs/evaluation.md", "docs/deployments.md",
    "docs/full-models.md", "CONTRIBUTING.md",
)  # fmt: skip
PROGRAMS = ("dreamcache", "make", "python", "torchrun", "prefect", "export")


@dataclass(frozen=True)
class Block:
    """A block: its document, its first line, its language ("python" or ""), its text, the comment before it."""

    document: str
    line: int
    language: str
    text: str
    comment: str

    @property
    def only_checked(self) -> bool:
        return self.comment.startswith("only checked:")

    @property
    def is_text(self) -> bool:
        return self.comment == "text"

    @property
    def place(self) -> str:
        """Where it begins, such as README.md:12."""
        return f"{self.document}:{self.line}"

    def commands(self) -> list[tuple[str, str]]:
        """Its command lines with their places; where some have a `$`, the others are what those print."""
        if self.language == "python" or self.is_text:
            return []
        lines = [(f"{self.document}:{number}", line) for number, line in enumerate(self.text.splitlines(), self.line)]
        prompted = [(place, line[2:]) for place, line in lines if line.startswith("$ ")]
        return prompted or [(place, line) for place, line in lines if line.strip()]

    def printed(self) -> list[str]:
        """The lines that its commands are said to print."""
        lines = self.text.splitlines()
        shown = any(line.startswith("$ ") for line in lines)
        return [line for line in lines if shown and not line.startswith("$ ") and line != "..."]


def read(document: str) -> str:
    """The text of a document of the repository."""
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, text: str) -> list[Block]:
    """All blocks of a document's Markdown text, in order."""
    found: list[Block] = []
    lines, comment, listed, number = text.splitlines(), "", 0, 0
    while number < len(lines):
        line = lines[number]
        indent, after_blank = len(line) - len(line.lstrip()), number == 0 or not lines[number - 1].strip()
        if said := re.fullmatch(r"\s*<!-- (.*) -->", line):
            comment = said[1]
        elif fence := re.fullmatch(r"( *)```(\w*)", line):
            end = next(place for place in range(number + 1, len(lines)) if lines[place].strip() == "```")
            inside = [part[len(fence[1]) :] for part in lines[number + 1 : end]]
            found.append(Block(document, number + 2, fence[2], "\n".join(inside), comment))
            comment, number = "", end
        elif line.strip() and indent >= listed + 4 and (after_blank or "-->" in lines[number - 1]):
            end = number
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" " * (listed + 4))):
                end += 1
            inside = [part[listed + 4 :] for part in lines[number:end]]
            found.append(Block(document, number + 1, "", "\n".join(inside).rstrip(), comment))
            comment, number = "", end - 1
        elif line.strip():
            assert not comment, f"{document}:{number + 1}: no block follows the comment {comment!r}"
            item = re.match(r"(\d+\. |- )", line)
            listed = len(item[0]) if item else (listed if indent >= 2 else 0)
        number += 1
    return found


def words(command: str) -> list[str]:
    """A command line as its words: assignments before it, its comment and the path of its program left out."""
    split = shlex.split(command, comments=True)
    while split and re.match(r"[A-Z_]+=", split[0]):
        split.pop(0)
    return [Path(split[0]).name, *split[1:]] if split else []


def spans(document: str, text: str) -> list[tuple[str, str]]:
    """What stands between backquotes in sentences, with its place."""
    inside = {
        number
        for block in blocks(document, text)
        for number in range(block.line, block.line + len(block.text.splitlines()))
    }
    return [
        (f"{document}:{number}", span)
        for number, line in enumerate(text.splitlines(), 1)
        if number not in inside
        for span in re.findall(r"`([^`]+)`", line)
    ]
