"""What there is in the made world, and what is true of it.

Facts are the part of the world that no picture shows: the language model learns them from text, and
pictures meet them only when a question is asked.
"""

from __future__ import annotations

KINDS: dict[str, str] = {
    **{"dog": "dogs", "cat": "cats", "horse": "horses", "cow": "cows", "pig": "pigs"},
    **{"elephant": "elephants", "fish": "fish", "whale": "whales", "bird": "birds"},
    **{"owl": "owls", "butterfly": "butterflies", "bee": "bees"},
    **{"banana": "bananas", "apple": "apples", "lemon": "lemons"},
    **{"strawberry": "strawberries", "pineapple": "pineapples"},
    **{"car": "cars", "bus": "buses", "bicycle": "bicycles", "plane": "planes"},
    **{"helicopter": "helicopters", "boat": "boats"},
    **{"ball": "balls", "guitar": "guitars", "house": "houses", "key": "keys", "clock": "clocks"},
}
"""Every kind of thing, and its plural."""

COUNTS = ("a", "two", "three", "four")
"""Number words; the count is the index plus one ("an" is written before a vowel)."""

PLACES: dict[str, str] = {
    "grass": "on grass",
    "snow": "in snow",
    "sand": "on sand",
    "night": "at night",
    "sea": "at sea",
}
"""Every background, and the words that end a caption."""

_ANIMALS = "dog cat horse cow pig elephant fish whale bird owl butterfly bee"

_FACTS = {
    "is an animal": _ANIMALS,
    "is a fruit": "banana apple lemon strawberry pineapple",
    "is a vehicle": "car bus bicycle plane helicopter boat",
    "can fly": "bird owl butterfly bee plane helicopter",
    "has wings": "bird owl butterfly bee plane",
    "has feathers": "bird owl",
    "has wheels": "car bus bicycle plane",
    "has four legs": "dog cat horse cow pig elephant",
    "has an engine": "car bus plane helicopter",
    "has a door": "house car bus plane helicopter",
    "has a saddle": "horse bicycle",
    "lives in water": "fish whale",
    "lives on a farm": "horse cow pig",
    "lays eggs": "fish bird owl butterfly bee",
    "tastes sweet": "banana apple strawberry pineapple",
    "tastes sour": "lemon",
    "makes music": "guitar",
    "makes honey": "bee",
    "gives milk": "cow",
    "can bark": "dog",
}

FACTS: dict[str, frozenset[str]] = {
    fact: frozenset(kinds.split()) for fact, kinds in _FACTS.items()
}
"""What may be true of a thing, and the kinds of which it is."""

PLACE_FACTS: dict[str, str] = {"cold": "snow", "dark": "night", "wet": "sea"}
"""What may be true of a place ("Is it cold there?"), and the one of which it is."""
