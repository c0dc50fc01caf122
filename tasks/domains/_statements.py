"""Whether a sentence states a value, or denies, doubts or changes it: `not 18`, `~18`, `18 or 20`, `18-20`, `is it 18?`.

Strict on purpose, and the same for all domains that read an answer from free text: what is not plainly stated is not read,
which is an error and no verdict, while what is read can become a reward.
"""

import re
import unicodedata
from itertools import takewhile
from typing import NamedTuple

ENDS = re.compile(r"[.!?](?=\s|$)|[。！？\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
CLAUSES = re.compile(r"[,;:]|\b(?:so|thus|hence|therefore|then|which|leaving|leaves|means|gives)\b", re.IGNORECASE)
DENIED = re.compile(
    r"\b(?:not|cannot|cant|isnt|arent|wasnt|no|nobody|never|neither|nor|unless|if|whether|approximately|roughly|approx|circa|wrong|wrongly"
    r"|incorrect|incorrectly|false|falsely|maybe|perhaps|possibly|probably|(?:may|might|could) be|guess|doubts?|doubtful|unsure"
    r"|unlikely|hardly|barely|either|claim(?:s|ed)?|says?|said|allegedly|supposed|supposedly|suppose|pretend|imagine|hypothetically"
    r"|untrue|myth|deny|denies|refuse[sd]?|up to|anything but|all but|nothing but|everything but|instead of|rather than)\b|n['’]t\b"
    r"|\bassum(?:e|es|ing)(?:\s+that)?\s+the\s+(?:\w+\s+)?$",
    re.IGNORECASE,
)
"""Words in the clause before a value that take it back."""
CHANGED = re.compile(
    r"\b(?:about|around|nearly|almost|close|near|over|under|above|below|beyond|exceed(?:s|ing)?|least|most|maximum|minimum|than"
    r"|between|minus|negative|plus|times|twice|thrice|double|triple|half|third|quarter|without|except|besides|log|ln|root|square"
    r"|cube|different from|other than|by|divided|per)(?:\s+(?:of|to|the|a|an|some|as|that|only|just|equal|by|from)){0,3}\s*$"
    r"|[0-9]\W{0,3}\s(?:to|and|or|through|thru|until|till|of|x|vs)\s+\W{0,2}$",
    re.IGNORECASE,
)
"""Words right before a value that make another one of it."""
AFTER = re.compile(
    r"\b(?:or|not|cannot|never|wrong|incorrect|false|maybe|perhaps|possibly|probably|approximately|roughly|approx|unless|if|but"
    r"|than|plus|minus|divided|multiplied|squared|cubed|twice|thrice|doubled|tripled|halved|negated|reversed|backwards|below zero"
    r"|hundreds?|thousands?|millions?|billions?|trillions?|mil|mn|bn|lakhs?|crores?|doz|dozens?|point|pi|binary|octal|hexadecimal"
    r"|hal(?:f|ves)|thirds?|quarter|fourths?|fifths?|tenths?|ish|factorial|percent of|untrue|lie[ds]?|fails|rejected)\b|n['’]t\b"
    r"|\bbase\s+[0-9]|\btimes\s+(?:\W{0,2}[0-9]|(?:the|that|two|three|four|five|six|seven|eight|nine|ten)\b)|\bat (?:the )?(?:least|most)\b"
    r"|\b(?:to|and|through|thru|until|till)\s+\W{0,3}[0-9]|\b(?:and|up|plus) (?:counting|change|up|above|over|more|some|beyond|below)\b",
    re.IGNORECASE,
)
"""Words after a value that do either."""
SECOND = re.compile(
    r"(?:(?!\b(?:because|since|so|as|which|for|in|when|if)\b)[^,;:(=])*?(?:(?<![A-Za-z])[0-9]|\br[0-9])", re.IGNORECASE
)
"""Another number in the clause of a value, of which the two are one: `18 mod 20`, `18 feet 6 inches`. `m2` is a unit."""
SIGNS = r"-–−+*/^<>=~≈≅∼±∓≤≥≠×÷·∙⋅•⨯⁄∕√_\\|&#@!?"
OPERATOR = re.compile(rf"(?<![A-Za-z])[{SIGNS}]|[{SIGNS}](?![A-Za-z])")
"""Not between letters, as in `km/h` and `pre-cooked`."""
OPERATED = re.compile(rf"[{SIGNS.replace('=', '')}→∝]\s*$")
RELATION = re.compile(
    r"[<>≠≈≅∼~≤≥±∓∝!]|\\(?:neq?|not|neg|geq?(?:slant)?|leq?(?:slant)?|lt|gt|approx|sim(?:eq)?|cong|pm|mp|propto|to|(?:right|left)arrow"
    r"|implies|in|notin)(?![A-Za-z])"
)
UNSOLVED = re.compile(
    r"\banswer\s*[-+*/^]|[-+*/^0-9]\s*(?:the\s+)?answer\b|[0-9)]\s?[xyzn]\s*(?:[-+*/^]|$)"
    r"|(?<![\w.])[xyzn]\s*[-+*/^]\s*[0-9(]|[-+*/^]\s*[xyzn]\s*$",
    re.IGNORECASE,
)
"""The left side of an equation that still holds the unknown: `2x = 18`, `answer + 1 = 18`. `3 x 6` multiplies."""
MIXED = re.compile(r"[A-Za-z][\u0370-\u058f]|[\u0370-\u058f][A-Za-z]")
"""Latin letters beside Greek, Cyrillic or Armenian ones, which look like them."""
WHOSE = re.compile(
    r"(?:['’]s|\b(?:their|his|her|your|first|previous|proposed|given|another|other|old|initial|original|possible|naive|tempting|bad))"
    r"\s+(?:[a-z]+\s+)?$|[0-9)]\s*[*+/^]\s*(?:the\s+)?$",
    re.IGNORECASE,
)
UNSEEN = frozenset({"Cf", "Mn", "Me", "Cc", "Cs"})


class Sentence(NamedTuple):
    """A place in a text with what stands before and after it in its sentence."""

    before: str
    after: str
    question: bool
    """Whether the sentence ends with a question mark."""


def sentence(text: str, start: int, end: int) -> Sentence:
    """The sentence around `text[start:end]`."""
    line = text.rfind("\n", 0, start) + 1
    *_, first = [line, *(m.end() for m in takewhile(lambda m: m.end() <= start, ENDS.finditer(text, line)))]
    stop = ENDS.search(text, end)
    return Sentence(text[first:start], text[end : stop.start() if stop else None], bool(stop and stop[0] in "?？"))


def denied(words: str) -> bool:
    """Whether the clause that leads to a value, or to "answer", denies, doubts or changes it."""
    *_, start = [0, *(m.end() for m in CLAUSES.finditer(words))]
    clause = words[start:]
    return bool(DENIED.search(clause) or CHANGED.search(clause[-60:])) or disguised(clause)


def doubted_before(words: str) -> bool:
    """Whether a clause right before a value does so, or ends in a sign that computes or compares."""
    return denied(words) or bool(OPERATED.search(words[-9:]))


def doubted_after(words: str) -> bool:
    """Whether the rest of the sentence after a value does so."""
    return bool(AFTER.search(words) or OPERATOR.search(words)) or disguised(words)


def attributed(words: str) -> bool:
    """Whether what ends with "answer" is somebody else's, or a part of a sum: `Tom's answer is 18`, `2 * answer = 18`."""
    return bool(WHOSE.search(words[-60:]))


def disguised(words: str) -> bool:
    """Whether there are letters that look like others, or characters that cannot be seen."""
    if words.isascii() and words.isprintable():
        return False
    return bool(MIXED.search(words)) or any(unicodedata.category(c) in UNSEEN for c in words if c not in "\t\r\n")
