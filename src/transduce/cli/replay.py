"""``transduce replay DUMP``: compute the step again at which a run lost its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from transduce.core.errors import UserError


def replay_command(arguments: Sequence[str]) -> int:
    """Exit code 0 when the step gives the same again, 1 when it does not."""
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(
            "usage: transduce replay DUMP\n\nCompute the step again at which a run stopped because its loss or gradient was "
            "not finite.\nDUMP is the folder dump-... in the run folder."
        )
        if len(arguments) == 1:
            return 0
        raise UserError("Name the dump: transduce replay runs/g2p/dump-000123.")
    from transduce import systems
    from transduce.data import DataSpec
    from transduce.train import dump
    from transduce.train.bundle import config_of

    from .machine import set_up

    set_up()
    found = dump.read(arguments[0])
    about = found.about
    page = systems.find(about["system"])
    system = page.build(DataSpec.from_json(about["spec"]), config_of(page.config_type, about["config"], Path(arguments[0])))
    now = dump.replay(found, system)
    rows = ", ".join(map(str, about["rows"][:5])) + (" ..." if len(about["rows"]) > 5 else "")
    print(f"{about['system']} at step {about['step']}, seed {about['seed']}, {about['precision']}, rows {rows}")
    print(f"then: the {about['what']} was {about['value']}, first in {about['layer']}")
    where = now.layer or now.gradient
    print(f"now:  loss {now.loss:g}" + (f", first in {where}" if where else ", all gradients finite"))
    same = not now.finite and where == about["layer"]
    print("the same again" if same else "not the same: the code, the versions or the machine differ")
    return 0 if same else 1
