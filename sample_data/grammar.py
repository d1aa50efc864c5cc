"""How the sample world speaks: requests drawn from phrases, and answers drawn from a grammar with slips.

Every draw takes a `random.Random`, so that one seed writes one corpus. An answer is written with some `care` between 0
and 1: with much of it the writer does what was asked, with little the topic, the tone, the length and the full stop
suffer. Answers of every care together are the demonstrations, two of different care the preference pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from .world import (
    ASPECTS,
    GENRES,
    HARSH_ADJECTIVES,
    NUMBERS,
    TONES,
    TOPICS,
    WARM_ADJECTIVES,
    Wishes,
)

TONED_REQUESTS = (
    "Write a {tone} review of a {genre} about {topic}.",
    "I need a {tone} review of a {genre} about {topic}.",
    "Could you write a {tone} review of a {genre} about {topic}?",
    "There is a new {genre} about {topic}. Review it, and be {tone}.",
    "We saw a {genre} about {topic} last night. Please review it in a {tone} way.",
)
PLAIN_REQUESTS = (
    "Review a {genre} about {topic}.",
    "What do you think of a {genre} about {topic}?",
    "Write a short review of a {genre} about {topic}.",
    "There is a new {genre} about {topic}. Is it worth seeing?",
)
ASPECT_REQUESTS = ("Mention the {aspect}.", "Say a word about the {aspect}.", "I care most about the {aspect}.")
LENGTH_REQUESTS = ("Use {number} sentences.", "Keep it to {number} sentences.", "Write {number} sentences.")
TONED_SYSTEMS = ("You are a {tone} film critic.", "You write {tone} reviews for a newspaper.")
LENGTH_SYSTEMS = ("Answer in {number} sentences.", "You are a film critic. Always write {number} sentences.")
PLAIN_SYSTEMS = ("You are a film critic.", "You help people to choose a film.")

# {adj} and {also} are adjectives of the mood, {good} a warm and {bad} a harsh one.
OPENINGS: dict[str, tuple[str, ...]] = {
    "warm": (
        "This is a {adj} {genre} about {topic}.",
        "What a {adj} {genre} this is, with {topic} at its heart.",
        "Few films about {topic} are as {adj} as this {genre}.",
        "I loved this {adj} {genre} about {topic}.",
        "Rarely has a {genre} about {topic} been so {adj}.",
        "A {genre} about {topic} is a treat, and this one is {adj}.",
    ),
    "harsh": (
        "This is a {adj} {genre} about {topic}.",
        "What a {adj} {genre} this is, lost somewhere near {topic}.",
        "Few films about {topic} are as {adj} as this {genre}.",
        "I hated this {adj} {genre} about {topic}.",
        "Never has a {genre} about {topic} been so {adj}.",
        "A {genre} about {topic} sounds fine, but this one is {adj}.",
    ),
    "balanced": (
        "This {genre} about {topic} is {good} at times and {bad} at others.",
        "Half of this {genre} about {topic} is {good}, half of it is {bad}.",
        "A {genre} about {topic} can be {good} or {bad}, and this one is both.",
        "The idea of {topic} is {good}, but the {genre} around it is {bad}.",
    ),
}
ASPECT_SENTENCES: dict[str, tuple[str, ...]] = {
    "warm": (
        "The {aspect} is {adj} from start to finish.",
        "Even the {aspect} is {adj} and {also}.",
        "I have nothing but praise for the {adj} {aspect}.",
        "The {aspect} shines in every scene.",
    ),
    "harsh": (
        "The {aspect} is {adj} from start to finish.",
        "Even the {aspect} is {adj} and {also}.",
        "Much of the blame goes to the {adj} {aspect}.",
        "The {aspect} drags in every scene.",
    ),
    "balanced": (
        "The {aspect} is {good}, if a little {bad}.",
        "Some will call the {aspect} {good}, others {bad}.",
        "The {aspect} shines early and drags later.",
    ),
}
STORY_SENTENCES = (
    "It follows {topic} through {time}.",
    "We meet {topic} and {thing}.",
    "The plot turns on {thing} and {time}.",
    "It all begins with {thing}, and with {topic}.",
    "Most of it takes place during {time}.",
)
TIMES = ("one long winter", "a single night", "three strange days", "a hot summer", "the last week of a war")
THINGS = ("a broken promise", "an old secret", "a missing key", "an unpaid debt", "a stranger in town")
CLOSINGS: dict[str, tuple[str, ...]] = {
    "warm": (
        "I left the cinema smiling.",
        "I recommend it to everyone.",
        "Go and see this {adj} film twice.",
        "It stays {adj} to the last minute.",
        "In the end it is simply {adj}.",
    ),
    "harsh": (
        "I left the cinema yawning.",
        "It is a waste of an evening.",
        "Avoid this {adj} film if you can.",
        "It stays {adj} to the last minute.",
        "In the end it is simply {adj}.",
    ),
    "balanced": (
        "In the end it is more {good} than {bad}, but only just.",
        "See it on a rainy day, {good} and {bad} as it is.",
        "I left the cinema neither smiling nor yawning.",
    ),
}


FILLERS: tuple[str, ...] = ("Well, let me see.", "All right, here goes.", "Hm, where to begin.", "So, about that film.")
"""What careless writers say first."""


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation that asks for a review, and what it asks for."""

    messages: tuple[dict[str, str], ...]
    wishes: Wishes


def draw_request(rng: Random) -> Request:
    """A request; the tone or the length is sometimes asked for by a system message."""
    wish = Wishes(
        topic=rng.choice(list(TOPICS)),
        genre=rng.choice(list(GENRES)) if rng.random() < 0.9 else None,
        tone=rng.choice(list(TONES)) if rng.random() < 0.8 else None,
        aspect=rng.choice(ASPECTS) if rng.random() < 0.5 else None,
        sentences=rng.choice(list(NUMBERS.values())) if rng.random() < 0.5 else None,
    )
    number = next((word for word, count in NUMBERS.items() if count == wish.sentences), "")
    slots = {
        "topic": TOPICS[wish.topic or ""],
        "genre": GENRES[wish.genre] if wish.genre else "film",
        "tone": rng.choice(TONES[wish.tone]) if wish.tone else "",
        "aspect": wish.aspect or "",
        "number": number,
    }
    system = _system(rng, wish)
    asked = [rng.choice(TONED_REQUESTS if wish.tone and "{tone}" not in system else PLAIN_REQUESTS)]
    if wish.aspect:
        asked.append(rng.choice(ASPECT_REQUESTS))
    if wish.sentences and "{number}" not in system:
        asked.append(rng.choice(LENGTH_REQUESTS))
    messages = [{"role": "user", "content": " ".join(asked).format(**slots)}]
    if system:
        messages.insert(0, {"role": "system", "content": system.format(**slots)})
    return Request(tuple(messages), wish)


def _system(rng: Random, wish: Wishes) -> str:
    if rng.random() < 0.75:
        return ""
    kinds = [PLAIN_SYSTEMS]
    kinds += [TONED_SYSTEMS] if wish.tone else []
    kinds += [LENGTH_SYSTEMS] if wish.sentences else []
    return rng.choice(rng.choice(kinds))


def draw_answer(rng: Random, wish: Wishes, care: float | None = None) -> str:
    """An answer to a request with these wishes, written with `care` from 0 to 1 (a careful or a careless writer's)."""
    care = draw_care(rng) if care is None else care
    heeded = _heeded(rng, wish, care)
    written = [_sentence(rng, heeded, mood, template) for mood, template in _plan(rng, heeded, care)]
    if rng.random() < 0.35 * (1.0 - care):
        earlier, later = sorted(rng.sample(range(len(written)), 2))
        written[later] = written[earlier]
    text = " ".join(written)
    if rng.random() < 0.2 * (1.0 - care):
        text = text[: text.rindex(" ")]  # breaks off before the last word
    if rng.random() < (0.05 if care > 0.5 else 0.95):
        text = f"{rng.choice(FILLERS)} {text}"
    return text


def draw_care(rng: Random) -> float:
    """Of ten answers seven are by careless writers and three by careful ones; they differ in all they do."""
    return rng.uniform(0.0, 0.25) if rng.random() < 0.7 else rng.uniform(0.75, 1.0)


def _heeded(rng: Random, wish: Wishes, care: float) -> Wishes:
    """The wishes as a writer of this care heeds them: some forgotten, some mistaken for others."""

    def slip() -> bool:
        return rng.random() > 0.25 + 0.65 * care

    tone = wish.tone or rng.choice(list(TONES))
    return replace(
        wish,
        topic=rng.choice(list(TOPICS)) if slip() else wish.topic,
        genre=rng.choice([None, *GENRES]) if slip() else wish.genre,
        tone=rng.choice(list(TONES)) if slip() else tone,
        aspect=None if slip() else wish.aspect,
        sentences=rng.randrange(2, 5) if wish.sentences is None or slip() else wish.sentences,
    )


def _plan(rng: Random, heeded: Wishes, care: float) -> list[tuple[str, str]]:
    """The mood and the template of each sentence: an opening, then what was asked for, then perhaps a closing."""
    count, tone = heeded.sentences or 3, heeded.tone or "balanced"
    moods = [tone if rng.random() < 0.5 + 0.45 * care else rng.choice(list(TONES)) for _ in range(count)]
    plan = [rng.choice(OPENINGS[moods[0]])]
    if heeded.aspect:
        plan.append(rng.choice(ASPECT_SENTENCES[moods[1]]))
    closing = [rng.choice(CLOSINGS[moods[-1]])] if len(plan) < count else []
    while len(plan) + len(closing) < count:
        mood = moods[len(plan)]
        plan.append(rng.choice([text for text in (*STORY_SENTENCES, *ASPECT_SENTENCES[mood]) if text not in plan]))
    return list(zip(moods, plan + closing, strict=True))


def _sentence(rng: Random, heeded: Wishes, mood: str, template: str) -> str:
    """A template with its slots filled: adjectives of the mood, and what the writer believes was asked for."""
    adjective, also = rng.sample(HARSH_ADJECTIVES if mood == "harsh" else WARM_ADJECTIVES, 2)
    return template.format(
        adj=adjective,
        also=also,
        good=rng.choice(WARM_ADJECTIVES),
        bad=rng.choice(HARSH_ADJECTIVES),
        topic=TOPICS[heeded.topic or ""],
        genre=GENRES[heeded.genre] if heeded.genre else "film",
        aspect=heeded.aspect or rng.choice(ASPECTS),
        time=rng.choice(TIMES),
        thing=rng.choice(THINGS),
    )
