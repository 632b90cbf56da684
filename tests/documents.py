"""The documents of the project: pages, code blocks and commands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from cggm.commands.scripts import find_scripts, split_words

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(p for p in sorted(DOCS.rglob("*.md")) if "api" not in p.parts),
    )
}
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks of some languages, in their order."""
    return [(found[1], found[2]) for found in _BLOCK.finditer(text) if found[1] in languages]


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Script and arguments of each call of a pipeline in code blocks."""
    shown = "\n".join(content for _, content in blocks(text, "sh"))
    shown += "\n" + "\n".join(_INDENTED.findall(_BLOCK.sub("", text)))
    for line in re.sub(r"\\\n\s*", "", shown).splitlines():
        if found := re.search(r"(pipelines/\w+\.py)(.*)", line):
            yield found[1], shlex.split(found[2], comments=True)
        elif line.startswith("cggm "):
            words, behind = split_words(shlex.split(line, comments=True)[1:], find_scripts())
            if words:
                yield f"pipelines/{'_'.join(words)}.py", behind
