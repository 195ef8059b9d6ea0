"""Stories that end in a question whose answer takes two of their facts (after Weston et al. 2015, arXiv 1502.05698,
task 2).

People go to places and take things, also from each other; the question asks where a thing is. Its answer is the last
place of whoever took it last: one fact says who that is, another one where. The vocabulary is fixed and small.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..fields import SEPARATOR

ACTORS = ("mary", "john", "sandra", "daniel")
PLACES = ("kitchen", "garden", "office", "hallway", "bedroom", "bathroom")
THINGS = ("milk", "football", "apple")


@dataclass(frozen=True)
class Story:
    """``sentences`` in order, a ``question``, its one-word ``answer``, and which sentences (counted from 0) say who took
    the thing last (``holder``) and where that one went last (``place``)."""

    sentences: tuple[str, ...]
    question: str
    answer: str
    holder: int
    place: int

    @property
    def source(self) -> str:
        """Sentences and question as one text, a separator between them."""
        return f" {SEPARATOR} ".join((*self.sentences, self.question))


def story(rng: random.Random, length: int = 10) -> Story:
    """A random story of ``length`` sentences, of at least two; either kind of sentence is as likely."""
    while True:
        sentences: list[str] = []
        went: dict[str, tuple[int, str]] = {}
        took: dict[str, tuple[int, str]] = {}
        for i in range(length):
            actor = rng.choice(ACTORS)
            if rng.random() < 0.5:
                place = rng.choice([p for p in PLACES if went.get(actor, (0, ""))[1] != p])
                went[actor] = i, place
                sentences.append(f"{actor} went to the {place}")
            else:
                thing = rng.choice(THINGS)
                took[thing] = i, actor
                sentences.append(f"{actor} took the {thing}")
        known = [thing for thing, (_, actor) in took.items() if actor in went]
        if known:
            thing = rng.choice(known)
            holder, actor = took[thing]
            place, answer = went[actor]
            return Story(tuple(sentences), f"where is the {thing}", answer, holder, place)
