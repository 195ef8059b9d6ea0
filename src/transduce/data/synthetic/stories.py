"""Stories that end in a question whose answer takes two of their facts (after Weston et al. 2015, arXiv 1502.05698,
task 2).

People go to places and take things, also from each other; the question asks where a thing is. Its answer is the last
place of whoever took it last: one fact says who that is, another one where. The vocabulary is fixed and small.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Sequence

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
    """A random story of ``length`` sentences, at least two; both kinds of sentence are as likely."""
    while True:
        sentences: list[str] = []
        at: dict[str, str] = {}
        holder: dict[str, str] = {}
        for _ in range(length):
            actor = rng.choice(ACTORS)
            if rng.random() < 0.5:
                at[actor] = rng.choice([place for place in PLACES if place != at.get(actor)])
                sentences.append(f"{actor} went to the {at[actor]}")
            else:
                thing = rng.choice(THINGS)
                holder[thing] = actor
                sentences.append(f"{actor} took the {thing}")
        known = [thing for thing, actor in holder.items() if actor in at]
        if known:
            return understood(sentences, f"where is the {rng.choice(known)}")


def understood(sentences: Sequence[str], question: str) -> Story:
    """A story with the facts that answer its question."""
    thing = question.split()[-1]
    holder = max(i for i, s in enumerate(sentences) if s.endswith(f" took the {thing}"))
    actor = sentences[holder].split()[0]
    place = max(i for i, s in enumerate(sentences) if s.startswith(f"{actor} went to the "))
    return Story(tuple(sentences), question, sentences[place].split()[-1], holder, place)


def parse(source: str) -> Story:
    """The story that a source of the corpus tells."""
    *sentences, question = source.split(f" {SEPARATOR} ")
    return understood(sentences, question)
