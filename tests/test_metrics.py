"""metrics/: BLEU, ROUGE-L, CIDEr, METEOR and what is said of the captions."""

import math
import random
import sys

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from data.tokenizer import tokenize
from metrics import METRICS, Scorer, caption_statistics, score
from metrics import scores as scores_module
from metrics.meteor import MeteorError, find_java, meteor

WITHOUT_JAVA = METRICS[:-1]


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    """A machine without Java: nothing on PATH, no JAVA_HOME."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)


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
    got = score({"a": "The cat sat on the mat."}, {"a": ["the cat is on the mat"]}, METRICS[:4])
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
    got = score(predictions, references, WITHOUT_JAVA)
    assert list(got) == list(WITHOUT_JAVA)
    assert list(got.values()) == expected
    assert all(type(value) is float for value in got.values())


def test_scores_do_not_depend_on_the_order_of_images_nor_on_earlier_calls():
    predictions, references = _invented(20)
    scorer = Scorer(references)
    first = scorer.score(predictions, WITHOUT_JAVA)
    shuffled = dict(sorted(predictions.items(), reverse=True))
    assert scorer.score(shuffled, WITHOUT_JAVA) == first


def test_punctuation_and_case_do_not_change_the_scores():
    references = {"a": ["A dog runs."], "b": ["Two cats sleep!"]}
    plain = score({"a": "a dog runs", "b": "two cats sleep"}, references, WITHOUT_JAVA)
    assert score({"a": "A DOG, runs ...", "b": '"Two cats" sleep.'}, references, WITHOUT_JAVA) == plain


def test_only_the_metrics_asked_for_are_computed_and_java_is_not_started(monkeypatch):
    monkeypatch.setattr(scores_module, "meteor", lambda *_: pytest.fail("METEOR was computed"))
    predictions, references = _invented(3)
    got = Scorer(references).score(predictions, ["CIDEr", "BLEU-4"])
    assert list(got) == ["BLEU-4", "CIDEr"]


def test_an_empty_caption_scores_0_and_breaks_nothing():
    references = {"a": ["a dog runs"], "b": ["two cats"]}
    assert score({"a": "", "b": " . "}, references, WITHOUT_JAVA) == dict.fromkeys(WITHOUT_JAVA, 0)
    half = score({"a": "", "b": "two cats"}, references, WITHOUT_JAVA)
    assert all(0 < half[name] < 1 for name in ("BLEU-1", "ROUGE-L"))


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
        ({"a": []}, "no reference caption for a"),
        ({"a": ["."]}, "no reference caption contains a word"),
        ({}, "no reference caption contains a word"),
    ],
)
def test_references_that_cannot_be_scored_against_are_refused(references, message):
    with pytest.raises(ValueError, match=message):
        Scorer(references)


def test_an_unknown_metric_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match=r"unknown metric BLEU4; known: BLEU-1, .*METEOR"):
        score({"a": "a dog"}, {"a": ["a dog"]}, ["BLEU4"])


def test_scoring_prints_nothing(capfd, no_java):
    score(*_invented(5))
    assert capfd.readouterr() == ("", "")


# ---- METEOR ----------------------------------------------------------------------------------------


@pytest.mark.skipif(find_java() is None, reason="no Java found")
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
    scorer = Scorer(references)
    got = scorer.score(predictions, ["METEOR"])
    assert got == {"METEOR": pytest.approx(0.3881753784730212, abs=1e-9)}  # by pycocoevalcap 1.2's Meteor
    assert scorer.left_out == {}


def test_without_java_meteor_is_absent_and_the_reason_is_given(no_java):
    predictions, references = _invented(5)
    scorer = Scorer(references)
    assert list(scorer.score(predictions)) == list(WITHOUT_JAVA)
    assert list(scorer.left_out) == ["METEOR"]
    assert scorer.left_out["METEOR"].startswith("no Java found (install")
    scorer.score(predictions, ["BLEU-1"])
    assert scorer.left_out == {}


def test_java_home_goes_before_path(monkeypatch, tmp_path):
    for folder in ("home/bin", "path"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "java").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == str(tmp_path / "home/bin/java")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "gone"))
    assert find_java() == str(tmp_path / "path/java")


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Java is a script")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sys; sys.exit('Could not reserve enough space\\nfor object heap')",
            "Could not reserve enough space",
        ),
        ("print('Segment 1 score: 0.5')", "ended with status 0"),
        ("import time; time.sleep(60)", "longer than 0.5 s"),
    ],
)
def test_java_that_fails_or_hangs_is_one_line_and_no_traceback(fake_java, code, message):
    fake_java(code)
    with pytest.raises(MeteorError, match=message) as caught:
        meteor(["a dog", "a cat"], [["a dog"], ["a cat"]], timeout=0.5 if "sleep" in code else 60)
    assert "\n" not in str(caught.value)


def test_java_that_cannot_be_run_is_one_line_and_no_traceback(fake_java, tmp_path):
    (tmp_path / "java").write_bytes(b"\x00no program")
    (tmp_path / "java").chmod(0o755)
    with pytest.raises(MeteorError, match="does not start"):
        meteor(["a dog"], [["a dog"]])


# ---- Caption statistics ----------------------------------------------------------------------------


def test_statistics_tell_a_model_that_always_says_the_same():
    captions = {"a": "A dog runs.", "b": "a dog runs", "c": "a dog runs !", "d": "Two cats"}
    assert caption_statistics(captions, vocabulary_size=10) == {
        "distinct_captions": 2 / 4,
        "distinct_words": 5,
        "mean_length": 11 / 4,
        "dangling_endings": 0,
        "vocabulary_used": 5 / 10,
    }


def test_captions_that_break_off_are_told_from_those_that_end():
    broken = ["A man with a", "a dog runs in the.", "two dogs and"]
    whole = ["a dog jumps over", "a man stands outside", ""]
    captions = {str(i): caption for i, caption in enumerate(broken + whole)}
    assert caption_statistics(captions)["dangling_endings"] == 3 / 6


def test_statistics_of_no_caption_are_refused():
    with pytest.raises(ValueError, match="no captions"):
        caption_statistics({})
