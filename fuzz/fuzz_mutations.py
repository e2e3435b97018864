"""Small changes of right inputs, for Hypothesis: cut, doubled and replaced pieces, lying lengths and counts, mixtures."""

from __future__ import annotations

from hypothesis import strategies as st

_NUMBERS = [0, 1, 7, 127, 128, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1,
            1 << 63, (1 << 64) - 1]  # fmt: skip
_WORDS = [
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b'"\\ud800"',
    b"NaN",
    b"9" * 40,
    b"[" * 3000,
    b"\0",
    b"\xff\xfe",
    b"../",
]

_edits = st.tuples(
    st.sampled_from(["number", "flip", "cut", "double", "drop", "word", "random", "splice"]),
    st.floats(0, 1, allow_nan=False),
    st.integers(0, len(_NUMBERS) - 1),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.binary(max_size=24),
)


def mutated(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """A seed after up to six edits; now and then one without any."""
    return st.builds(_apply, st.sampled_from(seeds), st.sampled_from(seeds), st.lists(_edits, max_size=6))


def _apply(seed: bytes, other: bytes, edits: list[tuple[str, float, int, int, bytes]]) -> bytes:
    data = bytearray(seed)
    for kind, where, number, width, noise in edits:
        place = int(where * len(data))
        if kind == "number":
            value = _NUMBERS[number] & ((1 << 8 * width) - 1)
            data[place : place + width] = value.to_bytes(width, "little")
        elif kind == "flip" and data:
            data[min(place, len(data) - 1)] ^= 1 << number % 8
        elif kind == "cut":
            del data[place:]
        elif kind == "double":
            data[place:place] = data[place : place + width * 16]
        elif kind == "drop":
            del data[place : place + width]
        elif kind == "word":
            data[place : place + width] = _WORDS[number % len(_WORDS)]
        elif kind == "random":
            data[place : place + len(noise)] = noise
        elif kind == "splice":
            data[place:] = other[int(where * len(other)) :]
    return bytes(data)
