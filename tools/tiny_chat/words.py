"""The words of tiny-chat's world. Few enough to be learned, enough to be told apart."""

from __future__ import annotations

__all__ = [
    "ANIMALS",
    "BOYS",
    "COLORS",
    "FOODS",
    "FRIENDS",
    "GIRLS",
    "NAMES",
    "NUMBERS",
    "PLACES",
    "QUALITIES",
    "ROOMS",
    "THINGS",
    "TREATS",
    "WEATHER",
    "plural",
]

GIRLS = (
    *("Anna", "Bella", "Clara", "Daisy", "Ella", "Grace", "Hanna", "Ida", "Julia", "Kate"),
    *("Lily", "Mia", "Nora", "Olga", "Rosa", "Sara", "Tina", "Vera", "Wanda", "Zoe"),
)
BOYS = (
    *("Adam", "Ben", "Carl", "David", "Emil", "Finn", "George", "Henry", "Ivan", "Jack"),
    *("Karl", "Leo", "Max", "Noah", "Oscar", "Paul", "Ralph", "Sam", "Tom", "Will"),
)
NAMES = GIRLS + BOYS

ANIMALS = (
    *("bear", "bee", "bird", "cat", "cow", "dog", "duck", "fox", "frog", "goat"),
    *("hen", "horse", "lamb", "lion", "mouse", "owl", "pig", "rabbit", "snail", "turtle"),
)
FRIENDS = ("mom", "dad", "grandma", "grandpa", "sister", "brother", "teacher", "neighbor")
THINGS = (
    *("ball", "bell", "boat", "book", "box", "cup", "doll", "drum", "hat", "kite"),
    *("key", "lamp", "map", "pencil", "ring", "shell", "spoon", "stone", "toy", "wagon"),
)
FOODS = ("apples", "berries", "carrots", "cookies", "eggs", "grapes", "nuts", "pears", "plums")
TREATS = ("bread", "cake", "cheese", "honey", "milk", "pie", "soup", "tea")
COLORS = ("red", "blue", "green", "yellow", "white", "black", "brown", "pink", "purple", "orange")
QUALITIES = (
    *("big", "small", "old", "new", "shiny", "soft", "pretty", "strange", "heavy", "warm"),
    *("clean", "bright", "round", "tiny"),
)
PLACES = (
    *("forest", "garden", "meadow", "park", "village", "valley", "barn", "field", "farm"),
    *("town", "river", "hill"),
)
ROOMS = ("kitchen", "garden", "barn", "bedroom", "attic", "cellar", "hall", "school", "shop")
WEATHER = ("sunny", "rainy", "windy", "cold", "snowy", "cloudy")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)


def plural(noun: str) -> str:
    """Several of an animal or a thing: cats, foxes, mice."""
    if noun == "mouse":
        return "mice"
    return f"{noun}es" if noun.endswith(("x", "s", "ch", "sh")) else f"{noun}s"
