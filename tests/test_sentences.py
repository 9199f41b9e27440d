"""metrics/sentences.py: scores of single captions."""

import pytest

from metrics.scores import VALIDATION_METRICS, Scorer
from metrics.sentences import sentence_scores

REFERENCES = {
    "a": ["a dog runs on the grass", "the dog is running over a lawn"],
    "b": ["two men sit on a bench", "men sitting together"],
    "c": ["a boat on the sea", "there is a boat"],
}


def test_the_best_caption_scores_highest_and_a_wrong_one_nothing():
    scores = sentence_scores({"a": "a dog runs on the grass", "b": "a red kite"}, REFERENCES)
    assert scores["a"]["BLEU-4"] == pytest.approx(1)
    assert scores["a"]["ROUGE-L"] == pytest.approx(1)
    assert scores["a"]["CIDEr"] > 5 > 1 > scores["b"]["CIDEr"]
    assert scores["b"]["BLEU-4"] < 0.01


def test_a_caption_that_shares_no_word_with_its_references_scores_exactly_0():
    scores = sentence_scores({"a": "", "b": "red kites", "c": "a boat"}, REFERENCES)
    assert scores["a"] == scores["b"] == {"CIDEr": 0, "BLEU-4": 0, "ROUGE-L": 0}
    assert all(value > 0 for value in scores["c"].values())


def test_the_mean_of_cider_over_all_images_is_the_cider_of_the_set():
    captions = {"a": "a dog on the grass", "b": "men on a bench", "c": "a boat"}
    sentences = sentence_scores(captions, REFERENCES)
    mean = sum(scores["CIDEr"] for scores in sentences.values()) / 3
    assert mean == pytest.approx(Scorer(REFERENCES, VALIDATION_METRICS).score(captions)["CIDEr"])


def test_a_caption_scores_the_same_alone_and_among_others():
    captions = {"a": "a dog on the grass", "b": "men on a bench"}
    alone = sentence_scores({"a": captions["a"]}, REFERENCES)
    assert alone["a"] == pytest.approx(sentence_scores(captions, REFERENCES)["a"])
