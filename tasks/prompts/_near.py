"""Near-duplicate search: ROUGE-L over words in an index of rare words, and runs of 13 words."""

import re
from array import array
from collections import Counter
from fractions import Fraction

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

NGRAM = 13
SHARED = 6
"""Rare words that near texts must share before they are compared: more take more memory and give fewer candidates."""


class Texts:
    """An index of texts that finds near ones by ROUGE-L over words, in integers: no rounding decides.

    F = 2·LCS/(n + m) for n and m words, and rapidfuzz's Indel distance is n + m − 2·LCS. Only texts that share enough
    rare words are compared (prefix filtering, Chaudhuri et al. 2006, with the longer prefixes of Wang et al. 2012): LCS
    is at most the number of words in common, so of each text's words, the rarest first, so many must be shared among
    the first few. That loses none.
    """

    def __init__(self, max_similarity: Fraction) -> None:
        self.max_similarity = max_similarity
        self.names: list[str] = []
        self._coded, self._sizes = np.empty(1024, object), np.zeros(1024, np.int64)
        self._codes: dict[str, int] = {}
        self._postings: dict[tuple[int, int], array[int]] = {}

    def add(self, name: str, text: str) -> None:
        """Adds a text under a name."""
        place = len(self.names)
        if place == len(self._sizes):
            self._coded, self._sizes = np.resize(self._coded, 2 * place), np.resize(self._sizes, 2 * place)
        self.names.append(name)
        codes = self._encode(text)
        self._coded[place], self._sizes[place] = _characters(codes), len(codes)
        for word in self._prefix(codes)[0]:
            self._postings.setdefault(word, array("i")).append(place)

    def near(self, text: str) -> str | None:
        """The name of the first text whose ROUGE-L F with this one is above `max_similarity`."""
        codes = self._encode(text)
        places = self._candidates(codes)
        if not len(places):
            return None
        above, below = self.max_similarity.numerator, self.max_similarity.denominator
        total = self._sizes[places] + len(codes)
        common = total - process.cdist([_characters(codes)], self._coded[places], scorer=Indel.distance)[0]
        hits = places[common * below > total * above]
        return self.names[hits[0]] if len(hits) else None

    def _candidates(self, codes: list[int]) -> np.ndarray:
        """Places of the texts that share enough rare words and are neither too short nor too long."""
        prefix, shared = self._prefix(codes)
        postings = [np.frombuffer(self._postings[word], np.int32) for word in prefix if word in self._postings]
        if not postings:
            return np.empty(0, np.int64)
        places = np.flatnonzero(np.bincount(np.concatenate(postings)) >= shared)
        above, below, sizes = self.max_similarity.numerator, self.max_similarity.denominator, self._sizes[places]
        return places[2 * below * np.minimum(sizes, len(codes)) > above * (sizes + len(codes))]

    def _prefix(self, codes: list[int]) -> tuple[list[tuple[int, int]], int]:
        """The rarest words, each with its earlier occurrences, and how many of them a near text must share.

        A word that was first seen late counts as rare: an order that never changes, and near enough.
        """
        above, below, size = self.max_similarity.numerator, self.max_similarity.denominator, len(codes)
        min_size = above * size // (2 * below - above) + 1  # fewest words of a near text
        min_common = above * (size + min_size) // (2 * below) + 1  # fewest words in common with a near text
        before: Counter[int] = Counter()
        occurrences = []
        for code in codes:
            occurrences.append((code, before[code]))
            before[code] += 1
        occurrences.sort(reverse=True)
        shared = min(SHARED, min_common)
        return occurrences[: max(0, size - min_common + shared)], shared

    def _encode(self, text: str) -> list[int]:
        return [self._codes.setdefault(word, len(self._codes)) for word in words(text)]


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits, as in Google's rouge-score, but of any script."""
    return re.findall(r"[^\W_]+", text.lower())


def ngrams(text: str) -> list[str]:
    """All runs of 13 words in their order; a shorter text is one run, and one without words has none."""
    tokens = words(text)
    return [" ".join(tokens[i : i + NGRAM]) for i in range(max(1, len(tokens) - NGRAM + 1))] if tokens else []


def _characters(codes: list[int]) -> str:
    """A character for each word: what rapidfuzz compares fast. Surrogates are none."""
    return "".join(chr(n if n < 0xD800 else n + 0x800) for n in codes)
