"""Scores of the HR ablation: exact match, word accuracy, CIDEr-D, and intervals of means over seeds. Standard library
alone.

A score belongs to one question and lies in [0, 1], but for CIDEr-D, which lies in [0, 10].
"""

import collections
import math
import random
import re

# Student's t, 97.5 % point, by degrees of freedom from 1.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


def normalised(text):
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def exact_match(answer, expected):
    return float(normalised(answer) == normalised(expected))


def edit_distance(a, b):
    """Insertions, deletions and substitutions between two sequences."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def word_accuracy(answer, expected):
    """1 - (word errors / words expected), not below 0."""
    words = normalised(expected).split()
    return max(0.0, 1 - edit_distance(normalised(answer).split(), words) / len(words))


def character_accuracy(answer, expected):
    """Share of the places of `expected` at which `answer` has the same character."""
    answer, expected = normalised(answer), normalised(expected)
    return sum(a == b for a, b in zip(answer, expected)) / len(expected)


# ---- CIDEr-D ----------------------------------------------------------------------------------------
# Vedantam, Zitnick, Parikh: CIDEr: Consensus-based Image Description Evaluation (CVPR 2015), the form with clipped counts
# and a penalty on length that captioning papers report (cider.py of the COCO caption evaluation, n = 4, sigma = 6). Words
# are split by letters and digits instead of by the Penn Treebank tokenizer.

MAX_N, SIGMA = 4, 6.0


def ngrams(text):
    """{n-gram: count} for n from 1 to MAX_N."""
    words = re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower())
    return collections.Counter(tuple(words[i:i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


class CiderVector:
    """TF-IDF weights of a text by n, their norms, and the length the penalty is about (its number of bigrams, as there)."""

    def __init__(self, counts, documents, log_images):
        self.weights = [{} for _ in range(MAX_N)]
        for gram, count in counts.items():
            self.weights[len(gram) - 1][gram] = count * (log_images - math.log(max(1, documents[gram])))
        self.norms = [math.sqrt(sum(w * w for w in weights.values())) for weights in self.weights]
        self.length = sum(count for gram, count in counts.items() if len(gram) == 2)


def similarity(candidate, reference):
    total = 0.0
    for n in range(MAX_N):
        if candidate.norms[n] == 0 or reference.norms[n] == 0:
            continue
        dot = sum(min(w, reference.weights[n].get(gram, 0.0)) * reference.weights[n].get(gram, 0.0)
                  for gram, w in candidate.weights[n].items())
        total += dot / (candidate.norms[n] * reference.norms[n])
    return total / MAX_N * math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))


def cider(candidates, references):
    """{key: CIDEr-D of candidates[key] against the list references[key]}. How rare an n-gram is follows from the
    references of all keys."""
    counted = {key: [ngrams(text) for text in texts] for key, texts in references.items()}
    documents = collections.Counter(gram for texts in counted.values() for gram in set().union(*texts))
    log_images = math.log(len(references))
    scores = {}
    for key, text in candidates.items():
        candidate = CiderVector(ngrams(text), documents, log_images)
        against = [similarity(candidate, CiderVector(counts, documents, log_images)) for counts in counted[key]]
        scores[key] = 10 * sum(against) / len(against)
    return scores


# ---- means and intervals ----------------------------------------------------------------------------


def mean(values):
    return sum(values) / len(values)


def t_interval(values):
    """95 % interval of the mean of independent values, or None for fewer than two."""
    if len(values) < 2:
        return None
    centre = mean(values)
    deviation = math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1))
    degrees = len(values) - 1
    half = (T975[degrees - 1] if degrees <= len(T975) else 1.96) * deviation / math.sqrt(len(values))
    return centre - half, centre + half


def quantile(ordered, q):
    """Of sorted values, between the two nearest."""
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def bootstrap(by_seed, clusters, statistic, replicates=1000, seed=0):
    """95 % interval of statistic(means), percentiles over resampled seeds and resampled clusters of questions.

    `by_seed`: {name: one {question: score} per seed}, every one with the same questions; `clusters`: lists of questions
    that are drawn together (those of one picture). `statistic` takes {name: mean score}. Names share the drawn
    clusters, not the drawn seeds: so a difference between arms is one of the same pictures and of independent runs."""
    rng = random.Random(seed)
    sums = {name: [[sum(scores[q] for q in cluster) for cluster in clusters] for scores in seeds] for name, seeds in by_seed.items()}
    sizes = [len(cluster) for cluster in clusters]
    values = []
    for _ in range(replicates):
        drawn = rng.choices(range(len(clusters)), k=len(clusters))
        questions = sum(sizes[c] for c in drawn)
        means = {}
        for name, seeds in sums.items():
            picked = [seeds[s] for s in rng.choices(range(len(seeds)), k=len(seeds))]
            means[name] = sum(sum(of[c] for c in drawn) for of in picked) / (len(picked) * questions)
        values.append(statistic(means))
    values.sort()
    return quantile(values, 0.025), quantile(values, 0.975)
