"""What a reader without word order gets: the linear baseline that the sample must be too hard for.

sst   multinomial logistic regression on the counts of the sentence's words
para  logistic regression, and sts ridge regression, on the counts of either sentence and on how
      they overlap: Jaccard, shared words, length difference, words that differ

    print(bag_of_words_scores("data"))    # {"sst": {"accuracy": ...}, "para": ..., "sts": ...}
"""
import csv
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

FILES = {"sst": ("ids-sst", ("sentence",), "sentiment"),
         "para": ("quora", ("sentence1", "sentence2"), "is_duplicate"),
         "sts": ("sts", ("sentence1", "sentence2"), "similarity")}
L2 = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)   # tried on a fifth of the training rows


def read(folder, task, split):
    """A list of rows, each a list of word counts (one a sentence), and the labels."""
    stem, columns, label = FILES[task]
    with open(Path(folder) / f"{stem}-{split}.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    counts = [[Counter(re.findall(r"\w+", row[c].lower())) for c in columns] for row in rows]
    return counts, np.array([float(row[label]) for row in rows])


def overlap(one, two):
    """What a pair's bags of words tell about each other: 4 numbers."""
    shared, different = (one & two).total(), ((one - two) + (two - one)).total()
    return [len(one.keys() & two.keys()) / len(one.keys() | two.keys()), shared,
            abs(one.total() - two.total()), different]


def features(rows, vocabulary):
    """[rows, sentences * words + overlap + 1]; a word that training did not show is left out."""
    matrix = np.zeros((len(rows), len(rows[0]) * len(vocabulary)))
    for row, counts in zip(matrix, rows):
        for place, bag in enumerate(counts):
            for word in bag.keys() & vocabulary.keys():
                row[place * len(vocabulary) + vocabulary[word]] = bag[word]
    extra = [overlap(*counts) if len(counts) == 2 else [] for counts in rows]
    return np.hstack([matrix, np.array(extra), np.ones((len(rows), 1))])


def logistic(x, y, l2):
    """Weights [features, classes] of least cross-entropy plus l2/2 |W|² (the sum over rows)."""
    onehot = np.eye(int(y.max()) + 1)[y.astype(int)]

    def loss(flat):
        weights = flat.reshape(x.shape[1], -1)
        log_p = log_softmax(x @ weights, axis=1)
        gradient = x.T @ (np.exp(log_p) - onehot) + l2 * weights
        return -(onehot * log_p).sum() + l2 / 2 * (flat @ flat), gradient.ravel()

    start = np.zeros(x.shape[1] * onehot.shape[1])
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x.reshape(
        x.shape[1], -1)


def ridge(x, y, l2):
    """The weights of least squares plus l2 |w|², with the bias left to the last column."""
    return np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)


def score(task, x, y, train_x, train_y, l2):
    """Accuracy, or Pearson's correlation for sts, of a model fitted to the training rows."""
    if task == "sts":
        return np.corrcoef(x @ ridge(train_x, train_y, l2), y)[0, 1]
    return ((x @ logistic(train_x, train_y, l2)).argmax(axis=1) == y).mean()


def bag_of_words_scores(folder):
    """Dev scores of the three tasks, with the L2 that does best on the last fifth of train."""
    scores = {}
    for task in FILES:
        (train, train_y), (dev, dev_y) = read(folder, task, "train"), read(folder, task, "dev")
        words = sorted({word for counts in train for bag in counts for word in bag})
        vocabulary = {word: index for index, word in enumerate(words)}
        train_x, dev_x = features(train, vocabulary), features(dev, vocabulary)
        cut = len(train) * 4 // 5
        held_out = train_x[cut:], train_y[cut:], train_x[:cut], train_y[:cut]
        best = max(L2, key=lambda l2: score(task, *held_out, l2))
        metric = "pearson" if task == "sts" else "accuracy"
        scores[task] = {metric: float(score(task, dev_x, dev_y, train_x, train_y, best))}
    return scores


if __name__ == "__main__":
    print(bag_of_words_scores(sys.argv[1] if len(sys.argv) > 1 else "."))
