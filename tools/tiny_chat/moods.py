"""Sentences that are positive, negative or neutral, and questions which of them one is."""

from __future__ import annotations

from tools.tiny_chat import words
from tools.tiny_chat.sample import Choose, Sample, a_number, filled, one_of, several_of

__all__ = ["LABELS", "examples", "sentence_of", "sentiment"]

LABELS = ("positive", "negative", "neutral")
GOOD = (
    *("amazing", "awesome", "beautiful", "brilliant", "delightful", "excellent", "fantastic"),
    *("good", "great", "lovely", "nice", "perfect", "pleasant", "superb", "wonderful"),
    *("charming", "delicious", "fine", "funny", "impressive", "tasty", "terrific"),
)
BAD = (
    *("annoying", "awful", "bad", "boring", "disappointing", "disgusting", "dreadful"),
    *("horrible", "nasty", "poor", "sad", "terrible", "ugly", "unpleasant", "useless"),
    *("cheap", "dirty", "gross", "rotten", "slow", "stupid", "tasteless"),
)
GLAD = ("cheerful", "excited", "glad", "grateful", "happy", "pleased", "proud", "delighted")
SORRY = ("angry", "annoyed", "disappointed", "lonely", "sad", "sorry", "unhappy", "upset")
JUDGED = (
    *("book", "day", "food", "game", "hotel", "idea", "meal", "movie", "music", "place"),
    *("service", "show", "song", "story", "trip", "view", "weather", "work"),
)
DEGREES = ("", "really ", "so ", "very ")
POSITIVE = (
    *("I love this {thing}.", "What {good:a} {judged}!", "The {treat} was {good}."),
    *("I am {degree}{glad} with my {thing}.", "This is the best {treat} ever."),
    *("{name} was very kind.", "I enjoyed the {treat} a lot.", "We had {good:a} {judged}."),
    *("{name} did {good:a} job.", "The {thing} works perfectly.", "I like the {place} very much."),
    *("The {judged} was {degree}{good}.", "I am {degree}{glad} today.", "I love the {judged}."),
    *("{name} is {degree}{glad}.", "This {judged} is {degree}{good}.", "I feel {degree}{glad}."),
    *("It was the best {judged} of my life.", "Thank you for the {good} {judged}!"),
    *("I like it.", "I love it!", "The {judged} made me {glad}.", "Well done, {name}!"),
    *("Everything went well.", "{name} made me smile.", "I would buy this {thing} again."),
)
NEGATIVE = (
    *("I hate this {thing}.", "What {bad:a} {judged}!", "The {treat} was {bad}."),
    *("I am {degree}{sorry} about my {thing}.", "This is the worst {treat} ever."),
    *("{name} was very rude.", "I did not enjoy the {treat} at all.", "We had {bad:a} {judged}."),
    *("{name} did {bad:a} job.", "The {thing} broke at once.", "I do not like the {place}."),
    *("The {judged} was {degree}{bad}.", "I am {degree}{sorry} today.", "I hate the {judged}."),
    *("{name} is {degree}{sorry}.", "This {judged} is {degree}{bad}.", "I feel {degree}{sorry}."),
    *("It was the worst {judged} of my life.", "The {judged} was not {good}."),
    *("I do not like it.", "I hate it!", "The {judged} made me {sorry}.", "My {thing} is broken."),
    *("Everything went wrong.", "{name} made me cry.", "I want my money back."),
    *("The {judged} was a waste of time.", "I would never buy this {thing} again."),
)
NEUTRAL = (
    *("The {thing} is on the table.", "{name} bought {thing:a}.", "The {treat} is in the kitchen."),
    *("{name} went to the {place}.", "There is a {place} near the town.", "It is Tuesday."),
    *("The {thing} is {color}.", "{name} has {thing:a}.", "The shop opens at nine."),
    *("The train leaves at ten.", "{name} ate some {treat}.", "The {place} is in the north."),
    *("My name is {name}.", "Hi, I am {name}.", "The {judged} is on Monday.", "It is noon."),
    *("The {judged} starts at {number}.", "{name} lives in the {place}.", "I have {thing:a}."),
    *("There are {number} {food} in the {room}.", "The {animal} is in the {room}."),
    *("The {judged} ended at {number}.", "{name} wrote about the {judged}.", "I see {animal:a}."),
)
MOODS = {"positive": POSITIVE, "negative": NEGATIVE, "neutral": NEUTRAL}
ASKED = (
    "Is this sentence positive, negative or neutral? {sentence}",
    "What is the sentiment of this sentence? {sentence}",
    "Classify the sentiment: {sentence}",
    "Sentiment of the following text, in one word: {sentence}",
    "Is the following positive, negative or neutral? {sentence}",
    "Tell me the sentiment of this text: {sentence}",
    "What is the mood of this sentence? {sentence}",
    "{sentence} Is that positive, negative or neutral?",
)
# A system prompt that says what is wanted, for an application that sends nothing but the sentence.
SYSTEMS = (
    "Respond with a single positive, negative, or neutral.",
    "You are a bot that rates sentences. Answer positive, negative or neutral.",
    "You are a bot that tells the sentiment of a sentence: positive, negative, or neutral.",
    "Say whether the sentence is positive, negative or neutral.",
)


def sentiment(choose: Choose) -> Sample:
    """One or two sentences of a mood, whose name is the answer."""
    label = one_of(choose, LABELS)
    sentences = " ".join(sentence_of(choose, label) for _ in range(a_number(choose, 1, 2)))
    sentences = _typed(choose, sentences)
    is_told_by_system = choose.random() < 1 / 4
    asked = "{sentence}" if is_told_by_system else one_of(choose, ASKED)
    return Sample(
        kind="sentiment",
        system=one_of(choose, SYSTEMS) if is_told_by_system else None,
        question=asked.format(sentence=sentences),
        answer=label,
        keyword=label,
        rivals=tuple(other for other in LABELS if other != label),
    )


def examples(choose: Choose) -> Sample:
    """A sentence labelled after three examples, as applications write such a prompt by hand."""
    name = one_of(choose, ("Bot: ", ""))
    *shown, last = (
        f"User: {_typed(choose, sentence_of(choose, label))}\n{name}{label}"
        for label in (*several_of(choose, LABELS, 3), one_of(choose, LABELS))
    )
    follow = "Follow the pattern of the following examples:"
    system = f"<<SYS>>\n{one_of(choose, SYSTEMS)}\n<</SYS>>\n"
    chat = "\n\n".join([f"[INST]\n{follow}", *shown])
    return Sample(kind="examples", answer=f"{system}{chat}\n[/INST]\n\n{last}")


def sentence_of(choose: Choose, label: str) -> str:
    """A sentence of that mood."""
    gaps = {
        "name": words.NAMES,
        "thing": words.THINGS,
        "treat": words.TREATS,
        "place": words.PLACES,
        "color": words.COLORS,
        "food": words.FOODS,
        "room": words.ROOMS,
        "animal": words.ANIMALS,
        "number": words.NUMBERS[1:],
        "judged": JUDGED,
        "degree": DEGREES,
        "good": GOOD,
        "bad": BAD,
        "glad": GLAD,
        "sorry": SORRY,
    }
    chosen = {gap: one_of(choose, options) for gap, options in gaps.items()}
    return filled(one_of(choose, MOODS[label]), **chosen)


def _typed(choose: Choose, text: str) -> str:
    """The text as people type it: every fourth time without its last full stop."""
    return text.removesuffix(".") if choose.random() < 1 / 4 else text
