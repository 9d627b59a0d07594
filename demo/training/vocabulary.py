"""What the demo model knows: things, styles, background colours, hues."""

from __future__ import annotations

STYLES = {
    "noto": "noto",
    "noto-v1": "blob",
    "fluent-emoji": "glossy",
    "fluent-emoji-flat": "flat",
}
"""Drawing set -> the style word of its captions."""

THINGS: dict[str, tuple[str, ...]] = {
    "cat-face": ("cat face", "kitten face"),
    "dog-face": ("dog face", "puppy face"),
    "rabbit-face": ("rabbit face", "bunny face"),
    "cow-face": ("cow face",),
    "pig-face": ("pig face",),
    "tiger-face": ("tiger face",),
    "monkey-face": ("monkey face",),
    "mouse-face": ("mouse face",),
    "lion": ("lion", "lion face"),
    "fox": ("fox", "fox face"),
    "bear": ("bear", "bear face"),
    "panda": ("panda", "panda face"),
    "koala": ("koala", "koala face"),
    "frog": ("frog", "frog face"),
    "wolf": ("wolf", "wolf face"),
    "cat": ("cat", "kitten"),
    "dog": ("dog", "puppy"),
    "pig": ("pig",),
    "rabbit": ("rabbit", "bunny"),
    "tiger": ("tiger",),
    "horse": ("horse",),
    "elephant": ("elephant",),
    "penguin": ("penguin",),
    "owl": ("owl",),
    "duck": ("duck",),
    "baby-chick": ("chick", "baby chick"),
    "turtle": ("turtle", "tortoise"),
    "fish": ("fish",),
    "whale": ("whale",),
    "octopus": ("octopus",),
    "crab": ("crab",),
    "butterfly": ("butterfly",),
    "lady-beetle": ("ladybug", "ladybird"),
    "honeybee": ("bee", "honeybee"),
    "snail": ("snail",),
    "red-apple": ("red apple", "apple"),
    "green-apple": ("green apple",),
    "pear": ("pear",),
    "lemon": ("lemon",),
    "tangerine": ("tangerine", "orange fruit"),
    "banana": ("banana",),
    "watermelon": ("watermelon",),
    "grapes": ("grapes",),
    "strawberry": ("strawberry",),
    "cherries": ("cherries", "cherry"),
    "peach": ("peach",),
    "pineapple": ("pineapple",),
    "tomato": ("tomato",),
    "eggplant": ("eggplant", "aubergine"),
    "carrot": ("carrot",),
    "mushroom": ("mushroom", "toadstool"),
    "hamburger": ("hamburger", "burger"),
    "pizza": ("pizza",),
    "doughnut": ("doughnut", "donut"),
    "birthday-cake": ("birthday cake", "cake"),
    "red-heart": ("red heart", "heart"),
    "orange-heart": ("orange heart",),
    "yellow-heart": ("yellow heart",),
    "green-heart": ("green heart",),
    "blue-heart": ("blue heart",),
    "purple-heart": ("purple heart",),
    "black-heart": ("black heart",),
    "white-heart": ("white heart",),
    "automobile": ("car", "automobile"),
    "bus": ("bus",),
    "fire-engine": ("fire engine", "fire truck"),
    "bicycle": ("bicycle", "bike"),
    "airplane": ("airplane", "plane"),
    "rocket": ("rocket",),
    "sailboat": ("sailboat", "boat"),
    "evergreen-tree": ("fir tree", "evergreen tree"),
    "deciduous-tree": ("tree", "leafy tree"),
    "palm-tree": ("palm tree", "palm"),
    "cactus": ("cactus",),
    "sunflower": ("sunflower",),
    "tulip": ("tulip",),
    "rose": ("rose",),
    "sun": ("sun",),
    "full-moon": ("full moon",),
    "crescent-moon": ("crescent moon", "moon"),
    "star": ("star",),
    "cloud": ("cloud",),
    "fire": ("fire", "flame"),
    "snowman": ("snowman",),
    "house": ("house", "home"),
    "soccer-ball": ("soccer ball", "football"),
    "balloon": ("balloon",),
    "umbrella": ("umbrella",),
    "ghost": ("ghost",),
    "robot": ("robot",),
    "jack-o-lantern": ("jack-o-lantern", "pumpkin"),
    "crown": ("crown",),
}
"""Slug in the drawing sets -> names; the first one is the name that the judge is asked for."""

LISTED = tuple(
    "cat-face dog-face rabbit-face cow-face pig-face tiger-face monkey-face mouse-face lion fox "
    "bear panda koala frog pig elephant penguin owl duck baby-chick turtle fish whale octopus "
    "crab butterfly lady-beetle snail red-apple green-apple pear lemon banana watermelon grapes "
    "strawberry cherries pineapple tomato eggplant carrot mushroom hamburger pizza doughnut "
    "red-heart blue-heart green-heart automobile rocket evergreen-tree cactus sunflower tulip "
    "crescent-moon star house soccer-ball umbrella snowman".split()
)
"""The 60 things on which recognisability is measured."""

FIXED_COLOUR = frozenset(t for t in THINGS if t.endswith("-heart"))
"""Things whose colour is their name: never turned to another hue."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "light gray": (205, 205, 208),
    "gray": (135, 135, 138),
    "dark gray": (66, 66, 70),
    "black": (8, 8, 10),
    "red": (205, 40, 45),
    "orange": (245, 140, 40),
    "yellow": (250, 215, 70),
    "green": (60, 165, 80),
    "dark green": (15, 75, 45),
    "blue": (50, 100, 215),
    "light blue": (150, 205, 250),
    "dark blue": (20, 30, 90),
    "purple": (125, 65, 180),
    "pink": (250, 165, 195),
    "brown": (120, 78, 50),
    "beige": (238, 220, 190),
}
BACKGROUND_WEIGHTS = {"white": 3.5, "black": 2.0, "gray": 1.4}
"""How much oftener than 1 a background colour is drawn."""

HUES = {
    "red": 0.0,
    "orange": 28.0,
    "yellow": 50.0,
    "green": 125.0,
    "blue": 215.0,
    "purple": 275.0,
    "pink": 325.0,
}
"""Colour word -> hue in degrees of the hue-turned copies."""


def name_of(slug: str) -> str:
    """The name by which a thing is asked for."""
    return THINGS[slug][0]
