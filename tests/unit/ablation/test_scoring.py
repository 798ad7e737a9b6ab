"""Scores and intervals of the HR ablation against values worked out by hand."""
import math
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench/ablation"))
import scoring

LOG2 = math.log(2)


@pytest.mark.parametrize("answer,expected,right", [
    ("frog", "frog", True), (" Frog.\n", "frog", True), ("a  b", "a b", True), ("frogs", "frog", False), ("", "frog", False),
    ("123", "124", False), ("north-west", "north west", False)])
def test_exact_match(answer, expected, right):
    assert scoring.exact_match(answer, expected) == float(right)


@pytest.mark.parametrize("a,b,distance", [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 2),
                                          (["one", "two"], ["one", "three", "two"], 1)])
def test_edit_distance(a, b, distance):
    assert scoring.edit_distance(a, b) == distance


@pytest.mark.parametrize("answer,expected,score", [
    ("the package", "The package", 1), ("the pakage", "the package", 0.5), ("the big package", "the package", 0.5),
    ("package", "package", 1), ("", "package", 0), ("a b c d", "x", 0), ("one two three", "one three", 0.5)])
def test_word_accuracy(answer, expected, score):
    assert scoring.word_accuracy(answer, expected) == score


def test_character_accuracy():
    assert scoring.character_accuracy("123", "124") == pytest.approx(2 / 3)
    assert scoring.character_accuracy("12", "123") == pytest.approx(2 / 3)
    assert scoring.character_accuracy("1234", "123") == 1
    assert scoring.character_accuracy("", "123") == 0


# Two pictures, "a red cat" and "a blue dog". "a" is in both references: weight log(2/2) = 0. All other n-grams of the
# references are in one, and those of the candidates in one or none: weight log 2.
REFERENCES = {"cat": ["a red cat"], "dog": ["a blue dog"]}


@pytest.mark.parametrize("candidate,score", [
    ("A red cat.", 10 * 3 / 4),  # equal for n = 1, 2, 3; there are no 4-grams
    ("a red dog", 10 * (1 / 2 + 1 / 2) / 4),  # red of (red, dog) and (red, cat); "a red"; no trigram
    ("red", 10 * (1 / math.sqrt(2)) / 4 * math.exp(-4 / 72)),  # no bigrams against two
    # Twice is clipped to once: dot log2^2, norms 2 log2 and sqrt(2) log2; one bigram against two.
    ("red red", 10 * (1 / (2 * math.sqrt(2))) / 4 * math.exp(-1 / 72)),
    ("a", 0), ("", 0), ("a blue dog", 0)])
def test_cider_by_hand(candidate, score):
    assert scoring.cider({"cat": candidate, "dog": "x"}, REFERENCES)["cat"] == pytest.approx(score)


def test_cider_takes_the_mean_over_references():
    references = {"cat": ["a red cat", "a blue dog"], "dog": ["one two three four"]}
    # Now every n-gram is in one picture's references only; "a" weighs log 2 like the rest.
    score = scoring.cider({"cat": "a red cat", "dog": ""}, references)["cat"]
    half = (1 / 3 + 0 + 0) / 4  # against the second: "a" of three words
    assert score == pytest.approx(10 * (3 / 4 + half) / 2)


def test_cider_weighs_rare_words_more():
    references = {"1": ["a cat"], "2": ["a cat"], "3": ["a dog"], "4": ["a cow"]}
    scores = scoring.cider({"1": "cat", "2": "", "3": "dog", "4": ""}, references)
    # One word of two, of which "a" has weight 0: cosine 1 in both, whatever the weight.
    assert scores["1"] == scores["3"] == pytest.approx(10 / 4 * math.exp(-1 / 72))
    rare, common = math.log(4), LOG2
    mixed = scoring.cider({"1": "cat dog", "2": "", "3": "cat dog", "4": ""}, references)
    norm = math.hypot(rare, common)
    assert mixed["1"] == pytest.approx(10 / 4 * common / norm)
    assert mixed["3"] == pytest.approx(10 / 4 * rare / norm)


def test_t_interval():
    low, high = scoring.t_interval([1, 2, 3])  # deviation 1, two degrees of freedom
    assert (low, high) == (pytest.approx(2 - 4.303 / math.sqrt(3)), pytest.approx(2 + 4.303 / math.sqrt(3)))
    assert scoring.t_interval([5]) is None
    assert scoring.t_interval([0.5, 0.5]) == (0.5, 0.5)


def test_quantile():
    assert scoring.quantile([1, 2, 3, 4, 5], 0.5) == 3
    assert scoring.quantile([1, 2, 3, 4, 5], 0.1) == pytest.approx(1.4)
    assert scoring.quantile([7], 0.975) == 7


def halves(count):
    return {i: float(i % 2) for i in range(count)}


def width(by_seed, clusters):
    low, high = scoring.bootstrap({"x": by_seed}, clusters, lambda means: means["x"])
    assert low < 0.5 < high
    return high - low


def test_bootstrap_knows_the_spread_of_questions():
    alone = width([halves(400)], [[i] for i in range(400)])
    assert alone == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.15)
    # Pairs that stand and fall together say as much as half as many.
    scores = {i: float(i // 2 % 2) for i in range(400)}
    paired = width([scores], [[i, i + 1] for i in range(0, 400, 2)])
    assert paired == pytest.approx(alone * math.sqrt(2), rel=0.15)


def test_bootstrap_knows_the_spread_of_seeds():
    worlds = [{i: value for i in range(50)} for value in (0.0, 1.0)]  # within a seed nothing varies
    low, high = scoring.bootstrap({"x": worlds}, [[i] for i in range(50)], lambda means: means["x"])
    assert (low, high) == (0, 1)


def test_bootstrap_of_a_difference_uses_the_same_pictures():
    scores = halves(100)
    better = {i: s + 0.25 for i, s in scores.items()}
    low, high = scoring.bootstrap({"a": [better], "b": [scores]}, [[i] for i in range(100)], lambda means: means["a"] - means["b"])
    assert (low, high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_bootstrap_repeats():
    arguments = ({"x": [halves(30), halves(30)]}, [[i] for i in range(30)], lambda means: means["x"])
    assert scoring.bootstrap(*arguments, seed=3) == scoring.bootstrap(*arguments, seed=3)
    assert scoring.bootstrap(*arguments, seed=3) != scoring.bootstrap(*arguments, seed=4)
