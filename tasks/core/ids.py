"""Identity: a seed or an id comes from content, never from a position."""

import hashlib


def seed_of(*parts: object) -> int:
    """A 63-bit seed from what identifies a draw, for example (round seed, prompt id, sample index)."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def content_id(*parts: object) -> str:
    """The id of a row: 16 hexadecimal digits of the sha256 of its content and of its parents' ids."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:16]


def member_seed(seed: int, member: str, strategy: str) -> int:
    """The seed of a member of a stage: the round's where it is named as its strategy, so that a second member of the same
    strategy draws otherwise.
    """
    return seed if member == strategy else seed_of(seed, "member", member)
