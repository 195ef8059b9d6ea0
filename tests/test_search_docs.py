"""The examples of the page on search run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "search.md"


def test_the_examples_on_the_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert {"model", "coverage", "block", "lm", "length"} == names["rows"][0][0].parts.keys()
    assert abs(sum(names["rows"][0][0].parts.values()) - names["rows"][0][0].score) < 1e-6
    symbols = [set(source) | {2} for source in ([4, 5, 6], [7, 8])]
    assert all(set(row[0].ids) <= allowed for row, allowed in zip(names["copies"], symbols))
