"""Passwords that are tried first are refused, however they are dressed up; long or random ones never."""

import secrets
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.password import COMMON_WORDS, MAX_LENGTH, MIN_LENGTH, weakness
from tests.factories import Table, cases

ABOUT = ("ada.lovelace@analytical.example", "Engines & Sons")

WEAK: Table = {
    "one character": ("aaaaaaaaaaaa", "too few different"),
    "two in turns": ("abababababab", "too few different"),
    "digits": ("314159265358979", "digits and signs"),
    "a date": ("2026-11-25 10:30", "digits and signs"),
    "a unit, repeated": ("x7Kp9x7Kp9x7Kp9", "repeats"),
    "a row of keys": ("qwertyuiop[]", "keyboard"),
    "a row backwards": ("poiuytrewq", "keyboard"),
    "a German row": ("qwertzuiopyx", "keyboard"),
    "columns": ("1qaz2wsx3edc", "keyboard"),
    "two rows in turns": ("1q2w3e4r5t6y", "keyboard"),
    "the alphabet and digits": ("abcdefgh12345", "keyboard"),
    "a word": ("password!!!1", "words"),
    "a word in other letters": ("P@55w0rd2026", "words"),
    "a word twice": ("passwordPassword", "words"),
    "two words": ("Sunshine-Monkey1", "words"),
    "wide letters": ("\uff50\uff41\uff53\uff53\uff57\uff4f\uff52\uff44123", "words"),
    "the name in the address": ("Lovelace1815!", "address"),
    "the address": ("ada.lovelace@analytical.example", "address"),
    "the account": ("EnginesSons99", "address"),
}


@pytest.mark.parametrize(("password", "why"), cases(WEAK))
def test_what_would_be_tried_first_is_refused(password: str, why: str) -> None:
    assert why in str(weakness(password, about=ABOUT))


@pytest.mark.parametrize(
    "password",
    [
        "correct horse battery staple",
        "the quick brown fox was tired",
        "xK9#mQ2$vL7p",
        "monkey sunshine dragon summer",
        "\u043f\u0430\u0440\u043e\u043b\u044c \u0434\u043b\u0438\u043d\u043d\u044b\u0439",
        "\u99ac\u6b63\u3057\u3044\u96fb\u6c60\u30db\u30c3\u30c1\u30ad\u30b9",
    ],
)
def test_what_is_long_or_odd_is_accepted(password: str) -> None:
    assert weakness(password, about=ABOUT) is None


def test_random_passwords_are_accepted() -> None:
    for _ in range(2_000):
        assert weakness(secrets.token_urlsafe(12), about=ABOUT) is None


@given(st.text(min_size=MIN_LENGTH, max_size=MAX_LENGTH), st.lists(st.text(max_size=300), max_size=3))
def test_any_text_is_judged(password: str, about: list[str]) -> None:
    weakness(password, about=about)


@given(st.sampled_from(COMMON_WORDS.split()), st.text(string.digits + "!?.-_", min_size=MIN_LENGTH, max_size=20))
def test_no_decoration_makes_a_common_word_a_password(word: str, decoration: str) -> None:
    assert weakness(f"{word.title()}{decoration}") is not None
