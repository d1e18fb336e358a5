import random
import re

import numpy as np
import pytest

from raytrain.data.near import NearDuplicates, signature_of, similarity


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text)
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def text_of(draw: random.Random, words: int) -> list[str]:
    return [f"w{draw.randrange(2000)}" for _ in range(words)]


@pytest.mark.parametrize("replaced", [0, 2, 5, 10, 20, 40, 80, 400])
def test_the_similarity_is_that_of_the_sets_of_shingles(replaced):
    """Catches hashes that are not independent, or values of the wrong shingles: the estimate is then biased."""
    draw = random.Random(replaced)
    errors = []
    for _ in range(30):
        one = text_of(draw, 3000)
        other = list(one)
        for place in draw.sample(range(3000), replaced):
            other[place] = "another"
        truth = jaccard(" ".join(one), " ".join(other))
        errors.append(similarity(signature_of(" ".join(one)), signature_of(" ".join(other))) - truth)
    sd = (truth * (1 - truth) / 128) ** 0.5
    assert abs(np.mean(errors)) < 4 * sd / 30**0.5 + 0.002
    assert np.std(errors) < 1.5 * sd + 0.01


def test_near_copies_are_found_and_others_are_not():
    """Catches bands that miss copies of a file with its names changed, or that throw away what only shares a part."""
    draw = random.Random(0)
    originals = [text_of(draw, draw.randrange(200, 2500)) for _ in range(150)]
    near = NearDuplicates()
    assert all(near.is_new(" ".join(words)) for words in originals)
    missed = 0
    for words in originals:
        copy = list(words)
        copy[len(copy) // 2] = "changed"
        assert jaccard(" ".join(words), " ".join(copy)) > 0.9
        missed += near.is_new(" ".join(copy))
        half = [*words[: len(words) // 2], *text_of(draw, len(words) // 2)]
        assert near.is_new(" ".join(half))
    assert missed == 0


def test_short_texts_and_whitespace():
    """Catches a text below one shingle that fails, or that equals every other one; and layout that hides a copy."""
    near = NearDuplicates()
    assert near.is_new("")
    assert not near.is_new("  \n")
    assert near.is_new("one two")
    assert near.is_new("three four")
    assert not near.is_new("one\n\ttwo")


def test_signatures_never_change():
    """Catches a corpus that differs with the version of Python or NumPy. The numbers are those of the first version."""
    signature = signature_of("the quick brown fox jumps over the lazy dog")
    assert signature.dtype == np.uint32
    assert signature.shape == (128,)
    assert signature[:4].tolist() == [425736758, 2066840678, 869036375, 324997941]
    assert int(signature.astype(np.uint64).sum()) == 91_990_585_131
