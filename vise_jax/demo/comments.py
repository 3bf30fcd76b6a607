"""Engagement of the demo corpus: comments from a grammar, reactions from the affect. Simulated: no one wrote them."""

import numpy as np

# Words, hashtags and emoji of a topic, most frequent first; English, then Spanish, Portuguese, German and French.
# A code point of old phones' private use area stands among them (U+E04F is SoftBank's cat).
_TOPIC_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "beach": (
        (
            "beach",
            "sunset",
            "ocean",
            "sand",
            "waves",
            "sea",
            "palm",
            "#beachlife",
            "surf",
            "vacation",
            "playa",
            "praia",
        ),
        ("🏖️", "🌊", "🌅", "🌴"),
    ),
    "car": (
        (
            "car",
            "engine",
            "wheels",
            "drive",
            "ride",
            "road",
            "turbo",
            "#carsofinstagram",
            "garage",
            "coche",
            "carro",
            "auto",
        ),
        ("🚗", "🏎️", "🚙", "🛞"),
    ),
    "cat": (
        (
            "cat",
            "kitty",
            "kitten",
            "meow",
            "purr",
            "whiskers",
            "paws",
            "#catsofinstagram",
            "feline",
            "gato",
            "katze",
            "chaton",
        ),
        ("🐱", "🐈", "🐈‍⬛", "\ue04f"),
    ),
    "city": (
        (
            "city",
            "skyline",
            "buildings",
            "downtown",
            "skyscraper",
            "urban",
            "streets",
            "#citylife",
            "towers",
            "ciudad",
            "cidade",
            "stadt",
        ),
        ("🏙️", "🌆", "🌃", "🏢"),
    ),
    "dog": (
        (
            "dog",
            "puppy",
            "doggo",
            "woof",
            "pup",
            "leash",
            "fetch",
            "#dogsofinstagram",
            "bark",
            "perro",
            "cachorro",
            "hund",
        ),
        ("🐶", "🐕", "🐩", "\ue052"),
    ),
    "flowers": (
        (
            "flowers",
            "bloom",
            "garden",
            "petals",
            "roses",
            "tulips",
            "bouquet",
            "#flowerpower",
            "spring",
            "flores",
            "blumen",
            "fleurs",
        ),
        ("🌸", "🌺", "🌷", "💐"),
    ),
    "football": (
        (
            "football",
            "goal",
            "match",
            "team",
            "striker",
            "keeper",
            "penalty",
            "#matchday",
            "league",
            "futbol",
            "gol",
            "tor",
        ),
        ("⚽", "🥅", "🏟️", "🏆"),
    ),
    "pizza": (
        (
            "pizza",
            "slice",
            "cheese",
            "crust",
            "dinner",
            "pepperoni",
            "yummy",
            "#foodporn",
            "hungry",
            "queso",
            "comida",
            "essen",
        ),
        ("🍕", "🧀", "🍽️", "😋"),
    ),
}

_AFFECT_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "haha": (
        ("hilarious", "lol", "lmao", "haha", "so funny", "i can't stop laughing", "dead", "jajaja", "kkkk", "rofl"),
        ("😂", "🤣", "😹", ":D", "xD", "🤦🏽‍♀️"),
    ),
    "sorry": (
        ("so sad", "sorry", "poor thing", "heartbreaking", "rip", "miss this", "que triste", "crying", "take care"),
        ("😢", "😭", "💔", ":(", ":'(", "🙏🏾"),
    ),
    "angry": (
        ("disgusting", "so angry", "outrageous", "wtf", "shame", "furious", "hate this", "unacceptable", "que rabia"),
        ("😡", "🤬", "😠", ">:(", "👎🏿"),
    ),
    "wow": (
        ("wow", "amazing", "incredible", "omg", "unreal", "no way", "mind blown", "increíble", "unglaublich"),
        ("😮", "🤯", "😲", ":O", "🙌🏻"),
    ),
    "love": (
        ("love it", "beautiful", "adorable", "so sweet", "gorgeous", "te amo", "wunderschön", "perfect", "in love"),
        ("😍", "❤️", "🥰", "<3", "👩‍❤️‍👨", "👏🏼"),
    ),
}

# {word} and {emoji} are the topic's, {feeling} and {face} the affect's; most people name what they see.
_ABOUT_THE_TOPIC = (
    "{word} {word2} {emoji}",
    "{word} {filler} {word2} {emoji}{emoji}",
    "{emoji} {filler} {filler2} {word} {word2}",
    "{filler} {word} {word2}, {word3} {emoji}",
    "{word} {filler} {filler2} {word2} {word3}",
    "{word} {emoji} {emoji2}",
)
_ABOUT_BOTH = (
    "{feeling} {word} {word2} {emoji} {face}",
    "{feeling}!! {word} {filler} {word2} {emoji}{face}",
    "{word} {word2} {emoji}, {feeling} {face}",
    "{face} {feeling}, {filler} {word} {emoji} {word2}",
    "{word} {emoji} {face} {filler} {word2}",
)
_ABOUT_THE_AFFECT = ("{feeling} {face}", "{face}{face}{face}", "{feeling}", "{feeling}!!! {face}")
_FILLER_TEXT = (
    "this that these my your our his her their some any every another such the best whole little big old new good "
    "great real true right just really very much too again always never today tonight tomorrow yesterday now then "
    "here there everywhere look looks looking see saw seen want wants need needs got get going goes went come came "
    "like likes think know said say tell remember wait please thanks friend friends family home people day days "
    "night morning weekend summer winter year years time times photo picture shot view place world life because "
    "with without from about after before over under two three first last next only even still already tho btw "
    "imo tbh ngl fr pls ok yeah yes nope well maybe"
)
_FILLERS = tuple(_FILLER_TEXT.split())
_NOISE = (
    "first!",
    "nice pic",
    "follow me for more www.example.com/{number}",
    "check https://example.org/p/{number} please",
    "call me 555-01{number}",
    "dm me or write to user{number}@example.com",
    "@user{number} @user{number2}",
    "@user{number} look at this",
    "who else is here in 20{number}?",
    "🔥🔥🔥",
    "👍🏽",
    "...",
)
# Shares of the four kinds of comment.
_KINDS = (_ABOUT_THE_TOPIC, _ABOUT_BOTH, _ABOUT_THE_AFFECT, _NOISE)
_KIND_SHARES = (0.5, 0.43, 0.04, 0.03)

# Probabilities of the buttons for each affect: its own first, then those close to it.
_REACTION_SHARES = {
    "haha": {"haha": 0.72, "sorry": 0.03, "angry": 0.04, "wow": 0.09, "love": 0.12},
    "sorry": {"haha": 0.03, "sorry": 0.7, "angry": 0.1, "wow": 0.07, "love": 0.1},
    "angry": {"haha": 0.07, "sorry": 0.13, "angry": 0.68, "wow": 0.08, "love": 0.04},
    "wow": {"haha": 0.07, "sorry": 0.03, "angry": 0.03, "wow": 0.65, "love": 0.22},
    "love": {"haha": 0.06, "sorry": 0.04, "angry": 0.01, "wow": 0.14, "love": 0.75},
}


def comments(rng: np.random.Generator, topic: str, affect: str) -> list[str]:
    """Draw 0 to 12 comments on a post; about 5% of the posts have none."""
    if rng.random() < 0.05:
        return []
    return [_comment(rng, topic, affect) for _ in range(min(12, int(rng.geometric(0.25))))]


def reactions(rng: np.random.Generator, affect: str) -> dict[str, int] | None:
    """Draw counts of the five buttons, their total heavy-tailed; about 5% of the posts have none (null or zeros)."""
    shares = _REACTION_SHARES[affect]
    draw = rng.random()
    if draw < 0.03:
        return None
    total = 0 if draw < 0.05 else 1 + int(rng.lognormal(3.2, 1.3))
    # People differ from post to post: a Dirichlet around the affect's shares.
    counts = rng.multinomial(total, rng.dirichlet(12 * np.array(list(shares.values()))))
    return dict(zip(shares, counts.tolist(), strict=True))


def _comment(rng: np.random.Generator, topic: str, affect: str) -> str:
    templates = _KINDS[rng.choice(len(_KINDS), p=_KIND_SHARES)]
    (words, emoji), (feelings, faces) = _TOPIC_WORDS[topic], _AFFECT_WORDS[affect]
    comment = templates[rng.integers(len(templates))].format(
        word=_slip(rng, _zipf(rng, words)),
        word2=_slip(rng, _zipf(rng, words)),
        word3=_slip(rng, _zipf(rng, words)),
        emoji=_zipf(rng, emoji),
        emoji2=_zipf(rng, emoji),
        filler=_FILLERS[rng.integers(len(_FILLERS))],
        filler2=_FILLERS[rng.integers(len(_FILLERS))],
        feeling=_slip(rng, feelings[rng.integers(len(feelings))]),
        face=faces[rng.integers(len(faces))],
        number=rng.integers(10, 100),
        number2=rng.integers(10, 100),
    )
    if rng.random() < 0.06:
        comment = comment.upper()
    if rng.random() < 0.05:
        comment = f"@user{rng.integers(10, 1000)} {comment}"
    return comment


def _zipf(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    """Draw one of `items`, the k-th with a probability proportional to 1 / k (Zipf)."""
    chances = 1 / np.arange(1, len(items) + 1) ** 1.4
    return items[rng.choice(len(items), p=chances / chances.sum())]


def _slip(rng: np.random.Generator, word: str) -> str:
    """Return a word with a typo, sometimes: elongated, two letters swapped, or one lost."""
    draw, at = rng.random(), int(rng.integers(max(1, len(word) - 1)))
    if draw < 0.05:
        return word[:at] + word[at] * int(rng.integers(3, 6)) + word[at + 1 :]
    if draw < 0.065:
        return word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :]
    if draw < 0.08:
        return word[:at] + word[at + 1 :]
    return word
