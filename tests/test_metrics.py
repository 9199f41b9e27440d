"""metrics/: BLEU, ROUGE-L, CIDEr, METEOR, what validation measures, and the statistics of captions."""

import math
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from data.tokenizer import tokenize
from metrics import METRICS, Metric, Scorer
from metrics import scores as scores_module
from metrics.bleu import bleu_scores
from metrics.measures import LOSS, MEASURES, PERPLEXITY, TOP5, find_monitor
from metrics.meteor import find_java, meteor
from metrics.metric import MetricError, Tokenized
from metrics.rouge import rouge_scores
from metrics.scores import VALIDATION_METRICS, score_set, scores_table
from metrics.sentences import sentence_scores
from metrics.statistics import caption_statistics
from utils import UserError

BY_NAME = {metric.name: metric for metric in METRICS}
BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
WITHOUT_JAVA = (*BLEU, "ROUGE-L", "CIDEr")


def score(predictions: dict, references: dict, names=WITHOUT_JAVA) -> dict[str, float]:
    return Scorer(references, [BY_NAME[name] for name in names]).score(predictions)


@pytest.fixture
def fake_java(monkeypatch, tmp_path):
    """A function that makes `java` the given Python code."""

    def install(code: str) -> None:
        java = tmp_path / "java"
        java.write_text(f"#!{sys.executable}\n{code}\n")
        java.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return install


# ---- BLEU, ROUGE-L, CIDEr --------------------------------------------------------------------------


def test_bleu_of_a_pair_is_what_one_computes_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples and no four words in a row are in the reference; same length.
    got = score({"a": "The cat sat on the mat."}, {"a": ["the cat is on the mat"]}, BLEU)
    assert got["BLEU-1"] == pytest.approx(5 / 6)
    assert got["BLEU-2"] == pytest.approx((5 / 6 * 3 / 5) ** (1 / 2))
    assert got["BLEU-3"] == pytest.approx((5 / 6 * 3 / 5 * 1 / 4) ** (1 / 3))
    assert got["BLEU-4"] == pytest.approx(0, abs=1e-3)


def test_bleu_punishes_captions_shorter_than_their_nearest_reference():
    got = score({"a": "a dog"}, {"a": ["a dog runs fast", "a dog runs fast on the grass"]}, ["BLEU-1"])
    assert got == {"BLEU-1": pytest.approx(math.exp(1 - 4 / 2))}


def test_bleu_counts_over_the_whole_set_rather_than_averaging_captions():
    got = score({"a": "a dog", "b": "x x x x"}, {"a": ["a dog"], "b": ["one two three four"]}, ["BLEU-1"])
    assert got["BLEU-1"] == pytest.approx(2 / 6)


def test_rouge_l_of_a_pair_is_what_one_computes_by_hand():
    # Longest common subsequence: 3 words; precision 3/3, recall 3/4; beta 1.2.
    got = score({"a": "a dog runs"}, {"a": ["a big dog runs"]}, ["ROUGE-L"])
    assert got["ROUGE-L"] == pytest.approx((1 + 1.2**2) * 1 * 0.75 / (0.75 + 1.2**2 * 1))


def test_cider_is_10_for_the_reference_itself_and_0_for_what_every_image_has():
    references = {"a": ["one two three four"], "b": ["five six seven eight"]}
    assert score({k: v[0] for k, v in references.items()}, references, ["CIDEr"])["CIDEr"] == pytest.approx(
        10
    )
    same = {"a": ["one two three four"], "b": ["one two three four"]}
    assert score({"a": "one two three four", "b": "one two three four"}, same, ["CIDEr"])["CIDEr"] == 0


def _invented(images: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Predictions and 1 to 5 references per image out of few words, so that many n-grams agree."""
    rng = random.Random(0)
    words = ["a", "the", "dog", "man's", "(red)", "T-shirt", "runs,", "jumps!", "on", "grass", "can't", "two"]

    def caption() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 12))) + "."

    references = {f"{i}.jpg": [caption() for _ in range(rng.randint(1, 5))] for i in range(images)}
    return {image: caption() for image in references}, references


def test_scores_equal_pycocoevalcaps_on_the_same_tokens():
    predictions, references = _invented(60)
    gts = {k: [" ".join(tokenize(caption)) for caption in v] for k, v in references.items()}
    res = {k: [" ".join(tokenize(v))] for k, v in predictions.items()}
    bleu, _ = Bleu(4).compute_score(gts, res, verbose=0)
    expected = [*bleu, Rouge().compute_score(gts, res)[0], Cider().compute_score(gts, res)[0]]
    got = score(predictions, references)
    assert list(got) == list(WITHOUT_JAVA)
    assert list(got.values()) == expected
    assert all(type(value) is float for value in got.values())


def test_scores_do_not_depend_on_the_order_of_images_nor_on_earlier_calls():
    predictions, references = _invented(20)
    scorer = Scorer(references, VALIDATION_METRICS)
    first = scorer.score(predictions)
    assert scorer.score(dict.fromkeys(references, "a dog")) != first
    shuffled = dict(sorted(predictions.items(), reverse=True))
    assert scorer.score(shuffled) == first


def test_punctuation_and_case_do_not_change_the_scores():
    references = {"a": ["A dog runs."], "b": ["Two cats sleep!"]}
    plain = score({"a": "a dog runs", "b": "two cats sleep"}, references)
    assert score({"a": "A DOG, runs ...", "b": '"Two cats" sleep.'}, references) == plain


def test_a_metric_of_any_kind_is_computed_from_tokens_in_the_given_order():
    words = Metric("words", lambda texts: sum(len(c.split()) for [c] in texts.predictions.values()))
    scorer = Scorer({"a": ["a dog"], "b": ["two cats"]}, [words, BY_NAME["BLEU-1"]])
    got = scorer.score({"a": "A dog!", "b": "cats"})
    assert got == {"words": 3, "BLEU-1": pytest.approx(math.exp(-1 / 3))}
    assert list(got) == ["words", "BLEU-1"]


def test_bleu_1_to_4_are_one_computation(monkeypatch):
    computed = []
    monkeypatch.setattr(
        scores_module, "bleu_scores", lambda texts: computed.append(texts) or bleu_scores(texts)
    )
    scorer = Scorer({"a": ["a dog"]}, VALIDATION_METRICS)
    assert scorer.score({"a": "a dog"})["BLEU-1"] == pytest.approx(1)
    assert len(computed) == 1
    assert scorer.score({"a": "a"})["BLEU-1"] == pytest.approx(math.exp(-1))  # and not remembered
    assert len(computed) == 2


def test_a_metric_that_cannot_be_computed_is_left_out_with_the_reason():
    def impossible(_texts):
        raise MetricError("no such model; install one")

    scorer = Scorer({"a": ["a dog"]}, [Metric("impossible", impossible), BY_NAME["BLEU-1"]])
    assert list(scorer.score({"a": "a dog"})) == ["BLEU-1"]
    assert scorer.left_out == {"impossible": "no such model; install one"}
    table = scores_table({"BLEU-1": 0.12345}, scorer.left_out)
    assert [line.split(maxsplit=1) for line in table.splitlines()] == [
        ["BLEU-1", "0.123"],
        ["impossible", "left out: no such model; install one"],
    ]


def test_a_metric_that_is_computed_again_is_no_longer_left_out():
    answers = iter([MetricError("Java took longer than 600 s"), 0.5])

    def at_the_second_time(_texts):
        if isinstance(answer := next(answers), MetricError):
            raise answer
        return answer

    scorer = Scorer({"a": ["a dog"]}, [Metric("late", at_the_second_time)])
    assert scorer.score({"a": "a dog"}) == {}
    assert list(scorer.left_out) == ["late"]
    assert scorer.score({"a": "a dog"}) == {"late": 0.5}
    assert scorer.left_out == {}


def test_an_empty_caption_scores_0_and_breaks_nothing():
    references = {"a": ["a dog runs"], "b": ["two cats"]}
    assert score({"a": "", "b": " . "}, references) == dict.fromkeys(WITHOUT_JAVA, 0)
    half = score({"a": "", "b": "two cats"}, references)
    assert all(0 < half[name] < 1 for name in ("BLEU-1", "ROUGE-L"))


def test_captions_that_share_no_word_with_their_references_score_exactly_0():
    references = {"a": ["a dog runs"], "b": ["two cats"]}
    assert score({"a": "two cats", "b": "dog"}, references) == dict.fromkeys(WITHOUT_JAVA, 0)
    shared = score({"a": "two cats", "b": "two"}, references, BLEU)
    assert shared["BLEU-1"] > 0.1
    # One word against 60 has a BLEU-1 of exp(-59), far below that of no word with pycocoevalcap's counts.
    assert score({"a": "dog"}, {"a": ["dog " * 60]}, ["BLEU-1"])["BLEU-1"] == pytest.approx(math.exp(-59))


def test_the_scores_of_a_set_are_those_of_its_own_images(no_java):
    predictions, references = _invented(10)
    some = dict(list(predictions.items())[3:6])
    scores, left_out = score_set(some, references)
    assert {name: scores[name] for name in WITHOUT_JAVA} == score(
        some, {name: references[name] for name in some}
    )
    assert scores.keys() | left_out.keys() == BY_NAME.keys()


@pytest.mark.parametrize("extra", [1, 5])
def test_images_without_partner_are_named_up_to_three(extra):
    known = {"a.jpg": ["a dog"]}
    others = {f"{i}.jpg": ["a cat"] for i in range(extra)}
    named = "0.jpg" if extra == 1 else "0.jpg, 1.jpg, 2.jpg and 2 more"
    with pytest.raises(ValueError, match=f"^references without prediction: {named}$"):
        score({"a.jpg": "a dog"}, {**known, **others})
    with pytest.raises(ValueError, match=f"^predictions without reference: {named}$"):
        score({"a.jpg": "a dog", **dict.fromkeys(others, "a cat")}, known)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({"a": []}, "no reference captions for a"),
        ({"a": ["."]}, "no reference caption contains a word"),
        ({}, "no reference caption contains a word"),
    ],
)
def test_references_that_cannot_be_scored_against_are_refused(references, message):
    with pytest.raises(UserError, match=message):
        Scorer(references)


def test_scoring_prints_nothing(capfd, no_java):
    score(*_invented(5), BY_NAME)
    assert capfd.readouterr() == ("", "")


# ---- METEOR ----------------------------------------------------------------------------------------


@pytest.mark.java
@pytest.mark.slow
def test_meteor_equals_pycocoevalcaps_even_where_java_speaks_german(monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    references = {
        "1": ["a dog runs across the grass", "The brown dog is running on the lawn."],
        "2": ["Two children play soccer at the beach"],
        "3": ["a cat sleeps", "a sleeping cat", "cat"],
        "4": ["A man wearing a red coat stands.", "a guy in a jacket"],
        "5": ["un café noir", "a black coffee"],
        "6": ["SCORE ||| two cats", "two kittens"],
    }
    predictions = {
        "1": "A dog runs across the grass.",
        "2": "Two childs are playing footbal on a beach",
        "3": "",
        "4": "A man in a red jacket!",
        "5": "un café\nnoir",  # a line break in a caption, which shifts no other
        "6": "EVAL ||| two cats",  # the words and the separator of the program's own protocol
    }
    scorer = Scorer(references, [BY_NAME["METEOR"]])
    got = scorer.score(predictions)
    assert got == {"METEOR": pytest.approx(0.3881753784730212, abs=1e-9)}  # by pycocoevalcap 1.2's Meteor
    assert scorer.left_out == {}


def test_without_java_meteor_is_absent_and_the_reason_is_given(no_java):
    predictions, references = _invented(5)
    scorer = Scorer(references)
    assert list(scorer.score(predictions)) == list(WITHOUT_JAVA)
    assert list(scorer.left_out) == ["METEOR"]
    assert scorer.left_out["METEOR"].startswith("no Java found (install")


def test_java_home_goes_before_path(monkeypatch, tmp_path):
    for folder in ("home/bin", "path"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "java").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == str(tmp_path / "home/bin/java")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "gone"))
    assert find_java() == str(tmp_path / "path/java")


TWO = Tokenized({"a": ["a dog"], "b": ["a cat"]}, {"a": ["a dog"], "b": ["a cat"]})


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Java is a script")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sys; sys.exit('Could not reserve enough space\\nfor object heap')",
            "Could not reserve enough space",
        ),
        ("print('Segment 1 score: 0.5')", "ended with status 0"),
        ("print('Segment 1 score: 0.5\\nSegment 2 score: NaN\\nFinal score: NaN')", "ended with status 0"),
        ("import time; time.sleep(60)", "longer than 0.5 s"),
    ],
)
def test_java_that_fails_or_hangs_is_one_line_and_no_traceback(fake_java, code, message):
    fake_java(code)
    with pytest.raises(MetricError, match=message) as caught:
        meteor(TWO, timeout=0.5 if "sleep" in code else 60)
    assert "\n" not in str(caught.value)


def test_java_that_cannot_be_run_is_one_line_and_no_traceback(fake_java, tmp_path):
    (tmp_path / "java").write_bytes(b"\x00no program")
    (tmp_path / "java").chmod(0o755)
    with pytest.raises(MetricError, match="does not start"):
        meteor(TWO)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Java is a script")
def test_meteor_that_fails_leaves_the_other_scores(fake_java):
    fake_java("import sys; print('Segment 1 score: 0.5'); sys.exit('out of memory')")
    predictions, references = _invented(5)
    scorer = Scorer(references)
    assert list(scorer.score(predictions)) == list(WITHOUT_JAVA)
    assert list(scorer.left_out) == ["METEOR"]
    assert "out of memory" in scorer.left_out["METEOR"]


def test_without_a_folder_for_its_files_meteor_is_left_out(fake_java, monkeypatch, tmp_path):
    fake_java("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(MetricError, match="cannot be written"):
        meteor(TWO)


ODD = {
    "surrogate": "a \ud800 dog runs",
    "control": "a\x00 dog\x1b[31m runs\x85\u2028 far",
    "empty": "",
    "lines": "a dog\nruns\r\nfar",
    "separator": "a dog ||| runs",
    "punctuation": "." * 10_000,
    "long": "a dog runs " * 3_000,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_captions_and_references_have_scores_and_change_none_of_the_others(name, no_java):
    references = {"odd": ["a dog", ODD[name]], "b": ["a cat sleeps", "a cat"], "c": ["two boats"]}
    captions = {"odd": ODD[name], "b": "a cat sleeps", "c": "boats"}
    scores, _ = score_set(captions, references)
    assert list(scores) == list(WITHOUT_JAVA)
    assert all(map(math.isfinite, scores.values()))
    of_captions = sentence_scores(captions, references)
    assert of_captions["b"]["ROUGE-L"] == pytest.approx(1)
    assert 0 <= caption_statistics(captions)["mean_length"] < 4_000


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Java is a script")
def test_an_odd_caption_is_one_line_in_the_files_of_meteor(fake_java):
    fake_java(
        """
import re, sys
predictions, references = (open(path, "rb").read().decode() for path in sys.argv[7:9])
count = len(re.findall("\\r\\n|\\r|\\n", predictions))  # what Java takes for the end of a line
assert len(re.findall("\\r\\n|\\r|\\n", references)) == 2 * count
print(*(f"Segment {i} score: 1.0" for i in range(count)), "Final score: 0.25", sep="\\n")
"""
    )
    captions = {name: [text] for name, text in ODD.items()}
    assert meteor(Tokenized(captions, {name: ["a dog", text] for name, text in ODD.items()})) == 0.25


WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_rouge_equals_pycocoevalcaps(caption, references):
    predictions, references = {"i": [" ".join(caption)]}, {"i": [" ".join(words) for words in references]}
    expected, _ = Rouge().compute_score(references, predictions)
    assert rouge_scores(Tokenized(predictions, references)) == (expected, [expected])


# ---- What validation measures ----------------------------------------------------------------------


def test_validation_measures_every_metric_but_the_slow_ones():
    names = [measure.name for measure in MEASURES]
    assert names == ["loss", "perplexity", "top5", *WITHOUT_JAVA]
    assert find_monitor("ROUGE-L").column == "ROUGE-L"
    assert find_monitor("loss").column == "val_loss"


def test_a_monitor_knows_which_of_two_values_is_better():
    for measure in (LOSS, PERPLEXITY):
        assert measure.is_better(1.0, 2.0)
        assert not measure.is_better(2.0, 1.0)
    for measure in (TOP5, find_monitor("CIDEr")):
        assert measure.is_better(0.2, 0.1)
        assert not measure.is_better(0.1, 0.2)
    for measure in MEASURES:
        assert not measure.is_better(0.1, 0.1)
        assert not measure.is_better(math.nan, 0.1)


@pytest.mark.parametrize(
    ("name", "nearest"), [("BLEU4", "BLEU-4"), ("cider", "CIDEr"), ("top-5", "top5"), ("METEOR", None)]
)
def test_an_unknown_monitor_is_an_error_with_the_allowed_names_and_the_nearest(name, nearest):
    with pytest.raises(UserError) as caught:
        find_monitor(name)
    message = str(caught.value)
    assert message.startswith(f"train.monitor='{name}': choose one of loss, perplexity, top5, BLEU-1, ")
    assert message.endswith(f"; did you mean {nearest!r}?" if nearest else "CIDEr")


# ---- Caption statistics ----------------------------------------------------------------------------


def test_statistics_show_that_a_model_repeats_one_caption():
    captions = {"a": "A dog runs.", "b": "a dog runs", "c": "a dog runs !", "d": "Two cats"}
    assert caption_statistics(captions, vocab_size=10) == {
        "distinct_captions": 2 / 4,
        "distinct_words": 5,
        "mean_length": 11 / 4,
        "dangling_endings": 0,
        "vocabulary_used": 5 / 10,
    }


def test_captions_that_break_off_are_distinguished_from_those_that_end():
    broken = ["A man with a", "a dog runs in the.", "two dogs and"]
    whole = ["a dog jumps over", "a man stands outside", ""]
    captions = {str(i): caption for i, caption in enumerate(broken + whole)}
    assert caption_statistics(captions)["dangling_endings"] == 3 / 6


def test_statistics_of_no_caption_are_refused():
    with pytest.raises(ValueError, match="no captions"):
        caption_statistics({})
