"""metrics/categories.py, bootstrap.py and analysis.py, and the page of reports/analysis.py."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.images import ImageFolder
from metrics.analysis import analyse
from metrics.bleu import bleu_counts, bleu_of_counts, bleu_scores
from metrics.bootstrap import compare, comparison_table
from metrics.categories import category_scores, find_words, read_categories
from metrics.meteor import meteor, meteor_of_statistics, meteor_statistics
from metrics.metric import tokenized_texts
from metrics.scores import score_set
from outputs import OutputFolder
from reports.analysis import write_analysis
from tests.page_helpers import EVIL, NASTY, draw_image
from tests.script_helpers import run
from utils import UserError

REFERENCES = {
    "a": ["A dog runs.", "Two dogs run on grass", "a brown dog running"],
    "b": ["two men sit", "men on a red bench", "a man and a woman"],
    "c": ["a boat on the blue sea", "there is a boat", "a boat sails"],
}
CAPTIONS = {"a": "a brown dog runs and a dog sits", "b": "a woman on a bench", "c": "a red boat at sea"}
OTHERS = {"a": "a dog runs on grass", "b": "two men sit", "c": "a boat"}
SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")

# ---- words by category -----------------------------------------------------------------------------


def test_precision_and_recall_of_a_category_are_what_one_computes_by_hand():
    people = {"man": "man", "men": "man", "woman": "woman", "women": "woman", "boy": "boy"}
    images = [
        # Said: man, boy; no reference has a boy. Expected, because two of three have it: man.
        ("A man, a man and a boy!", ["two men", "a man", "a woman"]),
        # Said: woman. Expected, because one of two is half: man and woman.
        ("women", ["a woman", "a man"]),
        # Said: nothing. Expected: boy; a man is in one reference of three.
        ("a dog", ["a boy", "a boy and a man", "sea"]),
    ]
    found = [find_words(caption, references, {"people": people}) for caption, references in images]
    score = category_scores(found)["people"]
    assert (score.said, score.expected) == (3, 4)
    assert (score.precision, score.recall) == (pytest.approx(2 / 3), pytest.approx(2 / 4))
    assert score.wrong == {"boy": 1}
    assert score.missed == {"boy": 1, "man": 1}


def test_of_a_category_that_nobody_names_there_is_no_share():
    score = category_scores([find_words("a dog", ["a cat"], {"colours": {"red": "red"}})])["colours"]
    assert score == (0, 0, None, None, {}, {})


def test_all_forms_on_a_line_of_the_file_are_one_word(tmp_path):
    path = tmp_path / "categories.yaml"
    path.write_text("animals:\n  - dog dogs\n  - cat\ncounts:\n  - two 2\n  - 3\n")
    assert read_categories(path) == {
        "animals": {"dog": "dog", "dogs": "dog", "cat": "cat"},
        "counts": {"two": "two", "2": "two", "3": "3"},
    }
    assert list(read_categories()) == ["people", "dogs", "colours", "counts", "actions"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no categories"),
        ("- dog", "has no categories"),
        ("animals: dog", "animals is not a list of words"),
        ("animals: [[dog]]", "animals is not a list of words"),
        ("animals: [dog dogs, dogs]", "'dogs' twice"),
        ("animals: [Dog]", "'Dog' is no single token"),
        ("animals: [dog's]", '"dog\'s" is no single token'),
        ("animals: [", "cannot read the categories"),
    ],
)
def test_a_wrong_file_of_categories_is_an_error_that_names_it(tmp_path, text, message):
    path = tmp_path / "categories.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_categories(path)
    assert str(path) in str(caught.value)


# ---- the comparison --------------------------------------------------------------------------------

WORDS = st.sampled_from(["a", "dog", "runs", "man", "red", "on"])
SENTENCES = st.lists(WORDS, max_size=9).map(" ".join)


@settings(max_examples=40)
@given(st.lists(st.tuples(SENTENCES, st.lists(SENTENCES, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_bleu_of_counts_is_the_bleu_of_the_set_and_of_each_caption(images):
    texts = tokenized_texts(
        {str(i): caption for i, (caption, _) in enumerate(images)},
        {str(i): group for i, (_, group) in enumerate(images)},
    )
    counts = bleu_counts(texts)
    of_set, of_captions = bleu_scores(texts)
    assert bleu_of_counts(counts.sum(axis=0)) == pytest.approx(of_set, rel=1e-9)
    for row, scores in zip(bleu_of_counts(counts), zip(*of_captions, strict=True), strict=True):
        assert row == pytest.approx(scores, rel=1e-9)


def test_compared_scores_are_those_that_are_printed(no_java):
    compared = compare(CAPTIONS, OTHERS, REFERENCES)
    assert tuple(compared) == SCORES
    for name, values in compared.items():
        assert values.score == pytest.approx(score_set(CAPTIONS, REFERENCES)[0][name], rel=1e-12)
        assert values.other == pytest.approx(score_set(OTHERS, REFERENCES)[0][name], rel=1e-12)
        assert values.difference == values.score - values.other
        assert values.low <= values.difference <= values.high


def test_of_equal_captions_the_interval_is_0(no_java):
    for values in compare(CAPTIONS, dict(reversed(CAPTIONS.items())), REFERENCES).values():
        assert values[2:] == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution(no_java):
    # ROUGE-L is 1 or 0 for each of 400 images, so the variance of its mean is p (1 - p) / 400.
    references = {str(i): ["red", "a red ball"] for i in range(400)}
    half = {image: "red" if i % 2 else "dog" for i, image in enumerate(references)}
    values = compare(half, dict.fromkeys(references, "dog"), references)["ROUGE-L"]
    assert values.difference == pytest.approx(0.5)
    deviation = (0.5 * 0.5 / 400) ** 0.5
    assert (values.high - values.low) / 2 == pytest.approx(1.96 * deviation, rel=0.1)


def test_both_sets_are_scored_on_the_same_resamples(no_java):
    # The first set is worse by the same amount on each image, whichever are drawn.
    references = {str(i): [("a b", "c d e f")[i % 2]] for i in range(10)}
    whole = {image: reference for image, [reference] in references.items()}
    values = compare(dict.fromkeys(references, "x"), whole, references)["ROUGE-L"]
    assert values[2:] == pytest.approx((-1, -1, -1))


def test_the_table_marks_differences_that_may_be_chance(no_java):
    same = comparison_table(compare(CAPTIONS, CAPTIONS, REFERENCES)).splitlines()[1:]
    assert len(same) == len(SCORES)
    assert all(line.endswith("+0.000 to +0.000  contains 0") for line in same)
    worse = compare(dict.fromkeys(CAPTIONS, "x"), CAPTIONS, REFERENCES)
    assert "contains 0" not in comparison_table(worse)


@pytest.mark.java
@pytest.mark.slow
def test_meteor_of_statistics_is_the_programs_own():
    captions = {**CAPTIONS, "b": REFERENCES["b"][0]}  # a caption that matches as a whole
    texts = tokenized_texts(captions, REFERENCES)
    rows = meteor_statistics(texts)
    assert rows.shape == (3, 23)
    assert meteor_of_statistics(rows.sum(axis=0)) == pytest.approx(meteor(texts), rel=1e-12)
    assert list(compare(captions, OTHERS, REFERENCES)) == [*SCORES, "METEOR"]


def test_without_a_match_meteor_is_0():
    assert meteor_of_statistics(np.zeros((2, 23))).tolist() == [0, 0]


# ---- length and novelty, worst and best ------------------------------------------------------------


def test_novelty_is_the_share_of_captions_that_are_no_training_captions():
    training = {"x": ["A brown dog runs, and a dog sits.", "nothing"], "y": ["THERE is a boat!"]}
    lengths = analyse(CAPTIONS, REFERENCES, training).lengths
    assert lengths["captions"].novelty == pytest.approx(2 / 3)
    assert lengths["references"].novelty == pytest.approx(8 / 9)
    assert (lengths["captions"].shortest, lengths["captions"].longest) == (5, 8)
    assert lengths["captions"].mean == pytest.approx((8 + 5 + 5) / 3)
    assert analyse(CAPTIONS, REFERENCES, {}).lengths["captions"].novelty is None


def test_images_are_ordered_from_the_worst_caption_to_the_best(no_java):
    captions = {**CAPTIONS, "a": REFERENCES["a"][0], "b": ""}
    analysis = analyse(captions, REFERENCES, {})
    assert list(analysis.scores) == ["b", "c", "a"]
    mean = sum(scores["CIDEr"] for scores in analysis.scores.values()) / 3
    assert mean == pytest.approx(score_set(captions, REFERENCES)[0]["CIDEr"])


# ---- the page --------------------------------------------------------------------------------------


class Cards(HTMLParser):
    """What the page shows: its images, the text of each card, and the elements of all kinds."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.images, self.cards = set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "article":
            self.cards.append("")
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        if self.cards:
            self.cards[-1] += f"{data} "


def test_the_page_is_one_file_that_shows_hostile_text_as_text(tmp_path):
    references = {NASTY: [EVIL], "gone.jpg": ["a red dog"]}
    analysis = analyse({NASTY: EVIL, "gone.jpg": "a blue dog"}, references, {})
    draw_image(60, 40).save(tmp_path / NASTY, format="jpeg")
    write_analysis(OutputFolder(tmp_path), EVIL, analysis, {EVIL: 0.5}, ImageFolder(tmp_path))
    html = (tmp_path / "analysis.html").read_text("utf-8")
    page = Cards(html)
    assert not {"script", "link", "iframe"} & page.tags
    assert not re.search(r"https?:|@import|url\(", html)
    [image] = page.images
    assert image["src"].startswith("data:image/jpeg;base64,")
    assert image["alt"] == EVIL
    worst, best = (" ".join(text.split()) for text in page.cards)
    assert NASTY in best
    assert EVIL in best
    for text in (
        "gone.jpg",
        "cannot be read",
        "a blue dog",
        "a red dog",
        "In no reference blue",
        "Missed red",
    ):
        assert text in worst


# ---- the script ------------------------------------------------------------------------------------


def evaluate(folder: Path, predictions: dict[str, str], *arguments, status: int = 0) -> str:
    (folder / "p.json").write_text(json.dumps(predictions))
    arguments = ("--config", "tiny.yaml", "--predictions", "p.json", *arguments)
    return run(folder, "evaluate", *arguments, status=status)


def test_evaluation_writes_an_analysis_and_compares_with_another(trained, no_java):
    names = [f"{i}.png" for i in range(20, 24)]
    first = {name: "a red half on the left" for name in names}
    second = {**first, "22.png": "on the right there is blue"}
    evaluate(trained, first, "--output", "one", "--analyse")
    assert "against" not in json.loads((trained / "one" / "analysis.json").read_text())
    text = evaluate(trained, second, "--output", "two", "--against", "one")
    content = json.loads((trained / "two" / "analysis.json").read_text(), parse_constant=pytest.fail)
    scores = json.loads((trained / "two" / "scores.json").read_text())
    compared = content["against"]["scores"]["BLEU-4"]
    assert content["against"]["captions"] == str(Path("one", "captions.json"))
    assert compared["score"] == pytest.approx(scores["BLEU-4"])
    assert f"{compared['low']:+.3f} to {compared['high']:+.3f}" in text
    assert content["categories"]["colours"]["precision"] == 0.5  # 20.png is red, 22.png blue
    assert sorted(content["images"]) == names
    assert len(Cards((trained / "two" / "analysis.html").read_text()).images) == 4


def test_another_evaluation_has_to_be_of_the_same_images(trained, no_java, monkeypatch):
    captions = {f"{i}.png": "a red half" for i in range(20, 24)}
    (trained / "val").mkdir()
    (trained / "val" / "captions.json").write_text('{"16.png": "red", "17.png": "green"}')
    text = evaluate(trained, captions, "--against", "val", status=2)
    assert "4 missing (20.png, 21.png, 22.png and 1 more); 2 others of the split val (16.png, 17.png)" in text
    (trained / "val" / "captions.json").write_text(json.dumps({**captions, "20.png": "a half"}))
    del captions["21.png"]
    assert "1 others of the split test (21.png)" in evaluate(trained, captions, "--against", "val", status=2)
    assert "captions.json" in evaluate(trained, captions, "--against", "data", status=2)
    # A model does not caption first, only to find that out at the end.
    monkeypatch.setattr("jobs.evaluate.caption_split", lambda *_: pytest.fail("it captioned"))
    shutil.move(trained / "val", trained / "other")
    (trained / "other" / "captions.json").write_text('{"16.png": "red"}')
    assert "--against" in run(trained, "evaluate", "--against", "other", status=2)
