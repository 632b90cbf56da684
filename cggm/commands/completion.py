"""Completion: what a shell asks for, and the words that may come next."""

import re
import runpy
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

from cggm.commands.scripts import find_mounted, find_scripts, split_words
from cggm.errors import UserError

_SHELLS = {
    "bash": """\
_cggm_complete() {
    local IFS=$'\\n'
    COMPREPLY=($(cggm --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o bashdefault -o default -F _cggm_complete cggm
""",
    "zsh": """\
_cggm_complete() {
    local -a found
    found=(${(f)"$(cggm --complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( $#found )); then compadd -a found; else _files; fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -u; }
compdef _cggm_complete cggm
""",
    "fish": """\
complete -c cggm -a '(cggm --complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
""",
}


def shell_script(shell: str) -> str:
    """What a shell evaluates to complete the words of ``cggm``.

    Args:
        shell: bash, zsh or fish.

    Raises:
        UserError: For another one.
    """
    if shell not in _SHELLS:
        raise UserError(
            f"Expected bash, zsh or fish behind --completion, but got {shell!r}.",
            'For bash, put `eval "$(cggm --completion bash)"` into ~/.bashrc.',
        )
    return _SHELLS[shell]


def candidates(words: Sequence[str]) -> list[str]:
    """What the last word may become; nothing where a file belongs there.

    Args:
        words: Those behind ``cggm``, the last one begun or empty.
    """
    scripts = find_scripts()
    *before, last = words or [""]
    command, behind = split_words(before, scripts)
    if not command:
        found = {w[len(before)] for w in scripts if w[: len(before)] == (*before,)}
        found |= set() if before else {"--help", "--version", "--completion", *find_mounted()}
    else:
        options = _options(scripts[command])
        values = options.get(behind[-1], []) if behind else []
        found = {*options} if last.startswith("-") else {*values}
    return sorted(word for word in found if word.startswith(last))


def _options(script: Path) -> dict[str, list[str]]:
    """Each option of a script with the words that it takes, as far as they can be told."""
    sys.argv = [str(script), "--help"]
    with redirect_stdout(StringIO()) as shown, suppress(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    found = re.findall(r"^  (?:-h, )?(--[\w.]+)(?: \[?([\w.:|]+))?", shown.getvalue(), re.MULTILINE)
    word = re.compile(r"\b[a-z][\w.]*\b(?!:)")  # cuda:N stands for many
    options = {key: word.findall(kind) if "|" in kind else [] for key, kind in found}
    methods = sorted(f.stem for f in (script.parent.parent / "configs" / "methods").glob("*.yaml"))
    return options | ({"--method": methods} if "--method" in options else {})
