"""Passwords that would be guessed among the first million, told by how they are made rather than by a list of them.

Source: docs/rules.md, "Identity". Length is what a password is worth; these rules take back what length only seems to
give: `passwordpassword`, `qwertyuiop12`, the address itself. Nothing else is asked, such as digits or capitals.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

MIN_LENGTH: Final = 10
MAX_LENGTH: Final = 256

LEAST_DIFFERENT_CHARACTERS: Final = 5
LONGEST_REPEATED_UNIT: Final = 6
SHORTEST_RUN: Final = 3
SHORTEST_OWN_WORD: Final = 4
# So many characters beside what is common do not make the whole uncommon, and neither do so few words.
FEW_CHARACTERS: Final = 3
FEW_WORDS: Final = 2

# What fingers do by themselves: rows of a keyboard, its columns, two rows in turns, the alphabet, the digits.
SEQUENCES: Final = (
    "1234567890",
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "qwertzuiop",
    "yxcvbnm",
    "azertyuiop",
    "qsdfghjklm",
    "wxcvbn",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p",
    "qazwsxedcrfvtgbyhnujmikolp",
    "1q2w3e4r5t6y7u8i9o0p",
    "1a2b3c4d5e6f7g8h9i",
    "a1b2c3d4e5f6g7h8i9",
    "!@#$%^&*()",
)
LOOKALIKES: Final = str.maketrans("0134578@$!|", "oieastbasil")

# Words that people build passwords from, in the languages that we get to see most. No name of a site or a product.
COMMON_WORDS: Final = """
    access account admin administrator alexander amanda america amor andrea andrew angel animal anthony apple april
    arsenal ashley august autumn baby bailey banana barcelona baseball basketball batman beautiful beer bella berlin
    bismillah blink blue boss bread brother brooklyn buster butterfly casino champion changeme changeit chance
    charlie cheese chelsea chicken chocolate chris christian coffee computer contrasena cookie corvette cowboy
    crystal daniel david december default demo diamond dolphin donald dragon dream eagle elephant elizabeth emma
    england enter ever family ferrari flower football forever forest france freedom friday friend friends galaxy
    garden gandalf geheim george germany ginger girl gold golden guest hallo hannah happy harley harry heaven heart
    hello help hockey home honey hunter iloveyou internet italia jackson january jasmine jennifer jessica jesus john
    jordan joseph joshua july june junior justin killer kitten kitty lakers lastname letmein letme liverpool login
    london looking love lovely lover loveme lucky maggie magic manager manchester march maria marina marlboro martin
    master matrix matthew maverick melissa mercedes merlin michael michelle mickey midnight miller mohammed monday
    money monkey monster morgan mother motdepasse muffin mustang mylove myself natasha nation naruto newyork nicole
    ninja november nothing number october office olivia orange pakistan panther parola pass passphrase passw passwd
    password passwort patrick peace peanut pepper phoenix piano please pokemon police porsche power prince princess
    private purple qwerty qwertz azerty rabbit rainbow ranger raiders real red robert rocky root russia samantha
    samsung saturday school scooter secret secure security senha september server service shadow silver simple
    sister skate skywalker smile snoopy soccer sophie spider spiderman spring starwars steelers stella student
    summer sun sunday sunflower sunshine super superman superstar system teacher tennis test tester testing thomas
    thunder thursday tiger tigger trustno trustnoone tuesday turtle unknown user username victoria victory viking
    warrior welcome willkommen wednesday whatever winner winter wizard woman work world yankees yellow yes you zaq
    zaqxsw zxc
    """
LONGEST_FIRST: Final = sorted(COMMON_WORDS.split(), key=len, reverse=True)


def weakness(password: str, *, about: Iterable[str] = ()) -> str | None:
    """What makes the password easy to guess, as the end of "the password ..."; None when nothing does.

    about: what an attacker knows of its owner, such as the address and the name of the account.
    """
    plain = unicodedata.normalize("NFKC", password).casefold()
    own = {word for text in about for word in _words(text)}
    if len(set(plain)) < LEAST_DIFFERENT_CHARACTERS:
        return "consists of too few different characters"
    if not any(character.isalpha() for character in plain):
        return "consists of digits and signs alone"
    if re.fullmatch(rf"(.{{1,{LONGEST_REPEATED_UNIT}}}?)\1+.?", plain, flags=re.DOTALL):
        return "repeats a few characters"
    if len(_without_runs(plain)) <= FEW_CHARACTERS:
        return "follows the keyboard or the alphabet"
    readings = (plain, plain.translate(LOOKALIKES))
    if any(_is_common(reading, sorted(own, key=len, reverse=True)) for reading in readings):
        return "says the address or the name that it belongs to"
    if any(_is_common(reading, [*sorted(own, key=len, reverse=True), *LONGEST_FIRST]) for reading in readings):
        return "is made of words that are tried first"
    return None


def _words(text: str) -> list[str]:
    found: list[str] = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", text).casefold())
    return [word for word in (*found, "".join(found)) if len(word) >= SHORTEST_OWN_WORD]


def _without_runs(text: str) -> str:
    """What is left of a text without runs of a sequence, forwards or backwards."""
    left, at = "", 0
    while at < len(text):
        run = max((_run_length(text[at:], sequence) for sequence in _BOTH_WAYS), default=0)
        if run >= SHORTEST_RUN:
            at += run
        else:
            left += text[at]
            at += 1
    return left


_BOTH_WAYS: Final = (*SEQUENCES, *(sequence[::-1] for sequence in SEQUENCES))


def _run_length(text: str, sequence: str) -> int:
    """How many characters at the start of a text follow each other in the sequence."""
    start = sequence.find(text[0])
    if start < 0:
        return 0
    length = 0
    for character, expected in zip(text, sequence[start:], strict=False):
        if character != expected:
            break
        length += 1
    return length


def _is_common(text: str, words: Iterable[str]) -> bool:
    """Whether a few of these words are all that there is to the letters of a text."""
    letters = "".join(character for character in text if character.isalpha())
    used = 0
    for word in words:
        if word in letters:
            letters = letters.replace(word, "")
            used += 1
    return 0 < used <= FEW_WORDS and len(letters) <= FEW_CHARACTERS
