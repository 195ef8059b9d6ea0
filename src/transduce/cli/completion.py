"""Completion for shells: a short script asks ``transduce --complete WORDS``, which answers without torch.

Commands, flags and choices are read off the source of the dataclasses that define them, systems and corpora
off the files of the catalogue; nothing here has to be kept in step.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from transduce.core.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent
TABLES = ("_RULES", "TASKS", "_KINDS", "_OTHERS")
"""Dictionaries of generated corpora, by name."""

SECOND = {"data": ["check"]}
"""Commands with a word of their own behind them."""

BASH = """\
# Completion of transduce for bash. Once:
#   transduce --completion bash > ~/.local/share/bash-completion/completions/transduce
_transduce() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$(printf '%q' "$line")")
    done < <(transduce --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -F _transduce transduce
"""

ZSH = """\
#compdef transduce
# Completion of transduce for zsh. Once, with fpath+=~/.zfunc before compinit:
#   transduce --completion zsh > ~/.zfunc/_transduce
_transduce() {
    local -a found open
    found=("${(@f)$(transduce --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=("${(@)found:#}")
    if (( ! ${#found} )); then
        _files
        return
    fi
    open=("${(@M)found:#*/}")
    found=("${(@)found:#*/}")
    if (( ${#found} )); then compadd -- "${found[@]}"; fi
    if (( ${#open} )); then compadd -S '' -- "${open[@]}"; fi
}
if [[ $funcstack[1] == _transduce ]]; then
    _transduce "$@"
else
    compdef _transduce transduce
fi
"""

FISH = """\
# Completion of transduce for fish. Once:
#   transduce --completion fish > ~/.config/fish/completions/transduce.fish
function __transduce_complete
    set -l words (commandline -opc)
    set -e words[1]
    set -l token (commandline -ct)
    set -l found (transduce --complete $words "$token" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path "$token"
    end
end
complete -c transduce -f -a '(__transduce_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def answer(arguments: Sequence[str]) -> int:
    """``--completion SHELL`` prints the script, ``--complete WORDS`` what may stand for the last word."""
    kind, *words = arguments
    if kind == "--complete":
        for word in candidates(words):
            print(word)
        return 0
    if len(words) != 1 or words[0] not in SCRIPTS:
        raise UserError(f"--completion takes one of {', '.join(SCRIPTS)}.")
    print(SCRIPTS[words[0]], end="")
    return 0


@dataclass(frozen=True)
class Flag:
    """A field of an options class. ``choices``: of a Literal. ``switch``: takes no value."""

    name: str
    positional: bool = False
    switch: bool = False
    choices: tuple[str, ...] = ()


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of ``words`` (all behind "transduce", the last perhaps empty) may become; nothing where
    the shell's own file names are the best answer."""
    from .main import COMMANDS

    *before, start = words or [""]
    if not before or before == ["help"]:
        top = [*COMMANDS, *([] if before else ["help", "--help", "--version", "--completion"])]
        return _fitting(top, start)
    command = before[0]
    if command == "--completion":
        return _fitting(list(SCRIPTS), start)
    if command not in COMMANDS:
        return []
    if command in SECOND and len(before) == 1:
        return _fitting([*SECOND[command], "--help"], start)
    flags = {f.name: f for f in flags_of(command, before[1:])}
    last = before[-1]
    if last.startswith("--") and not start.startswith("-") and len(before) > 1:
        flag = flags.get(last.removeprefix("--").replace("-", "_"))
        if flag is None or not flag.switch:
            return _values(flag, last, start)
    if start.startswith("-"):
        named = [n for f in flags.values() if not f.positional for n in _spellings(f)]
        return _fitting(sorted([*named, "--help"]), start)
    return _positionals(command, flags, before[1:], start)


def _fitting(words: Sequence[str], start: str) -> list[str]:
    return [w for w in words if w.startswith(start)]


def _spellings(flag: Flag) -> list[str]:
    return [f"--{flag.name.replace('_', '-')}"] + (
        [f"--no-{flag.name.replace('_', '-')}"] if flag.switch else []
    )


def _values(flag: Flag | None, last: str, start: str) -> list[str]:
    if last == "--data":
        return _fitting(corpora(), start)
    if last == "--device":
        return _fitting(["cpu", "cuda"], start)
    return _fitting(flag.choices, start) if flag is not None else []


def _positionals(command: str, flags: dict[str, Flag], given: Sequence[str], start: str) -> list[str]:
    names = {f.name for f in flags.values() if f.positional}
    if command == "fit" or names & {"system", "systems"}:
        left = [s for s in systems() if s not in given]
        return _fitting(left, start) if "systems" in names or len(left) == len(systems()) else []
    if "run" in names:
        return runs(start)
    return []


# ---------------------------------------------------------------- names that are in the files


def systems() -> list[str]:
    """Names of all system pages."""
    pages = (PACKAGE / "systems").glob("*/*.py")
    return sorted(p.stem.replace("_", "-") for p in pages if not p.stem.startswith("_"))


def corpora() -> list[str]:
    """Names of all built-in corpora, the generated ones by the tables in their source."""
    pages = (PACKAGE / "data" / "corpora").glob("*.py")
    real = sorted(p.stem.replace("_", "-") for p in pages if not p.stem.startswith("_"))
    made: list[str] = []
    for path in sorted((PACKAGE / "data" / "synthetic").glob("*.py")):
        for node in _tree(path).body:
            named = isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") in TABLES
            if named and isinstance(node.value, ast.Dict):
                made += [k.value for k in node.value.keys if isinstance(k, ast.Constant)]
    return [*real, *(f"synthetic-{name.removeprefix('synthetic-')}" for name in made)]


def runs(start: str) -> list[str]:
    """Run folders and bundles that begin with ``start``, and folders (with / behind) that may hold some."""
    head, _, tail = start.rpartition("/")
    folder = Path(os.path.expanduser(head or ("/" if start.startswith("/") else ".")))
    prefix = start[: len(start) - len(tail)]
    found: list[str] = []
    for path in _folders(folder):
        if path.name.startswith(tail) and (tail.startswith(".") or not path.name.startswith(".")):
            found.append(f"{prefix}{path.name}" if _is_run(path) else f"{prefix}{path.name}/")
    if not start:  # runs one level down save a step
        found += [f"{p.parent.name}/{p.name}" for d in _folders(folder) for p in _folders(d) if _is_run(p)]
    ready = sorted(f for f in found if not f.endswith("/"))
    return ready + sorted(f for f in found if f.endswith("/"))


def _folders(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if p.is_dir()]
    except OSError:
        return []


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in ("config.json", "bundle.json"))


# ---------------------------------------------------------------- flags from the source


@lru_cache(maxsize=None)
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=None)
def _files_of_classes() -> dict[str, Path]:
    """Where each class of the command line and of the training settings is defined."""
    places = [*sorted((PACKAGE / "cli").glob("*.py")), PACKAGE / "train" / "config.py"]
    found = {}
    for path in places:
        for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, path)
    return found


def flags_of(command: str, words: Sequence[str]) -> Iterator[Flag]:
    """The fields of the options classes that a command hands to its parser; for ``fit`` those of the training
    and of the named system, too."""
    from .main import COMMANDS

    module, function, _ = COMMANDS[command]
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for name in _parsed_classes(_tree(path), function):
        yield from _fields(name, _files_of_classes().get(name, path))
    if command == "fit":
        yield from _fields("TrainConfig", PACKAGE / "train" / "config.py")
        page = next((w for w in words if w in systems()), None)
        if page is not None:
            (source,) = (PACKAGE / "systems").glob(f"*/{page.replace('-', '_')}.py")
            yield from _fields("Config", source)


def _parsed_classes(tree: ast.Module, function: str) -> list[str]:
    """Names in the first argument of ``parse`` and ``settings_of`` and behind FlagCreatePairsOff, inside the
    command's function and its ``_options``."""
    known = _files_of_classes()
    found: list[str] = []
    for body in tree.body:
        if not isinstance(body, ast.FunctionDef) or body.name not in (function, "_options"):
            continue
        for node in ast.walk(body):
            inside: ast.AST | None = None
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("parse", "settings_of"):
                inside = node.args[0] if node.args else None
            elif isinstance(node, ast.Subscript) and getattr(node.value, "attr", "") == "FlagCreatePairsOff":
                inside = node.slice
            names = [n.id for n in ast.walk(inside) if isinstance(n, ast.Name)] if inside is not None else []
            found += [n for n in names if n in known and n not in found]
    return found


def _fields(name: str, path: Path) -> Iterator[Flag]:
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    yield _flag(item.target.id, item.annotation, _tree(path))


def _flag(name: str, annotation: ast.expr, tree: ast.Module) -> Flag:
    text = ast.unparse(annotation)
    choices: tuple[str, ...] = ()
    for node in (*ast.walk(annotation), *_alias(annotation, tree)):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "Literal":
            options = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            choices = tuple(str(o.value) for o in options if isinstance(o, ast.Constant))
    return Flag(name, "Positional" in text, text == "bool", choices)


def _alias(annotation: ast.expr, tree: ast.Module) -> Iterator[ast.AST]:
    """What module-level names in an annotation stand for (``Units = Literal[...]``)."""
    names = {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in names:
            yield from ast.walk(node.value)
