"""``transduce doctor``: what works on this machine, what does not, why, and how to mend it."""

from __future__ import annotations

import json
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from .options import parse

WIDTH = 110


@dataclass(frozen=True)
class Finding:
    """One line: ``status`` is "ok", "note" (something is slower or missing) or "problem" (the main job, to
    train and use a model, is not possible or not safe). ``fix`` says how to mend what is not ok."""

    section: str
    name: str
    status: str
    value: str
    fix: str = ""


@dataclass(frozen=True)
class Doctor:
    json: bool = False
    """Print the findings as JSON."""


def doctor_command(arguments: Sequence[str]) -> int:
    options = parse(Doctor, arguments, "doctor", "Say what works on this machine, what does not, and why.")
    findings = list(examine())
    sound = all(f.status != "problem" for f in findings)
    if options.json:
        print(json.dumps({"ok": sound, "findings": [asdict(f) for f in findings]}, indent=1))
    else:
        print(render(findings))
    return 0 if sound else 1


def examine() -> Iterator[Finding]:
    """Every section in turn. What goes wrong inside one is a finding, too, and the others go on."""
    from . import doctor_checks as around
    from . import doctor_machine as machine

    sections: tuple[Callable[[], Iterator[Finding]], ...] = (
        around.versions, machine.threads, machine.processor, machine.memory, machine.devices, machine.kernels,
        machine.ops, around.packages, around.data, around.disk, around.main_job,
    )  # fmt: skip
    for section in sections:
        try:
            yield from section()
        except Exception as problem:  # noqa: BLE001 (a broken installation may raise anything)
            where = traceback.extract_tb(problem.__traceback__)[-1]
            said = " ".join(str(problem).split()) or "no message"
            yield Finding(
                section.__name__.replace("_", " "),
                "examination",
                "problem",
                f"{type(problem).__name__}: {said} ({where.filename}, line {where.lineno})",
                "The installation may be damaged: install transduce anew, or report these lines.",
            )


def render(findings: Sequence[Finding]) -> str:
    """A block for each section; what is not ok says so, with its remedy below."""
    marks = {"ok": "  ok    ", "note": "  note  ", "problem": "PROBLEM "}
    width = max((len(f.name) for f in findings), default=0)
    lines: list[str] = []
    section = None
    for f in findings:
        if f.section != section:
            section = f.section
            lines += ["", section]
        head = f"{marks[f.status]}{f.name:<{width}}  "
        lines += textwrap.wrap(
            f.value, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False,
            break_long_words=False,
        ) or [head.rstrip()]  # fmt: skip
        if f.fix:
            lines += textwrap.wrap(
                f"-> {f.fix}", WIDTH, initial_indent=" " * len(head),
                subsequent_indent=" " * len(head) + "   ", break_on_hyphens=False, break_long_words=False,
            )  # fmt: skip
    notes, problems = (sum(f.status == kind for f in findings) for kind in ("note", "problem"))
    count = lambda n, word: f"{n} {word}{'' if n == 1 else 's'}"
    verdict = (
        "something to mend before models can be trained here" if problems else "ready to train and use models"
    )
    lines += ["", f"{count(problems, 'problem')}, {count(notes, 'note')}: {verdict}"]
    return "\n".join(lines[1:])
