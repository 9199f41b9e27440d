"""Which words of a category (people, colours, …) captions say, against the references of their images.

The categories and their words are in categories.yaml beside this file.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.tokenizer import tokenize
from utils import UserError
from yaml_reading import read_yaml

_FILE = Path(__file__).with_name("categories.yaml")
_NAMED = 5  # words that are most often wrong or missed


class Words(NamedTuple):
    """The words of one category for one image, each in its first form."""

    said: frozenset[str]  # in the caption
    seen: frozenset[str]  # in at least one reference
    expected: frozenset[str]  # in at least half of the references

    @property
    def wrong(self) -> frozenset[str]:
        """Said, but in no reference."""
        return self.said - self.seen

    @property
    def missed(self) -> frozenset[str]:
        """Expected, but not said."""
        return self.expected - self.said


class CategoryScore(NamedTuple):
    """The words of one category over all images. A word counts once per image, however often it is said.

    precision: of the words that captions say, the share that is in at least one reference of the image.
    recall: of the words that at least half of an image's references have, the share that its caption says.
    """

    said: int
    expected: int
    precision: float | None  # 0 to 1; None if nothing is said
    recall: float | None  # 0 to 1; None if nothing is expected
    wrong: dict[str, int]  # the words that are most often wrong, with the number of images
    missed: dict[str, int]


def read_categories(path: Path = _FILE) -> dict[str, dict[str, str]]:
    """Category -> form of a word -> its first form.

    Raises UserError if the file cannot be read, or is not lists of words by category, or if a form is in a
    category twice or is no token of data/tokenizer.py.
    """
    try:
        content = read_yaml(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the categories in {path} ({error})") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} has no categories; write `name:` and a list of words below it")
    return {str(name): _first_forms(lines, f"{path}: {name}") for name, lines in content.items()}


def find_words(
    caption: str, references: Sequence[str], categories: Mapping[str, Mapping[str, str]]
) -> dict[str, Words]:
    """By category, the words of the caption and of the references of one image, of which it needs one."""
    said, *seen = (set(tokenize(text)) for text in (caption, *references))
    found = {}
    for name, first_form in categories.items():
        count = Counter(word for tokens in seen for word in _known(tokens, first_form))
        expected = frozenset(word for word in count if 2 * count[word] >= len(references))
        found[name] = Words(_known(said, first_form), frozenset(count), expected)
    return found


def category_scores(found: Iterable[Mapping[str, Words]]) -> dict[str, CategoryScore]:
    """The scores of each category over the images that `find_words` was given."""
    images = list(found)
    return {name: _score([words[name] for words in images]) for name in images[0]}


def _score(images: Sequence[Words]) -> CategoryScore:
    said = sum(len(words.said) for words in images)
    expected = sum(len(words.expected) for words in images)
    wrong = Counter(word for words in images for word in sorted(words.wrong))
    missed = Counter(word for words in images for word in sorted(words.missed))
    return CategoryScore(
        said,
        expected,
        1 - wrong.total() / said if said else None,
        1 - missed.total() / expected if expected else None,
        dict(wrong.most_common(_NAMED)),
        dict(missed.most_common(_NAMED)),
    )


def _known(tokens: Iterable[str], first_form: Mapping[str, str]) -> frozenset[str]:
    return frozenset(first_form[token] for token in tokens if token in first_form)


def _first_forms(lines: object, where: str) -> dict[str, str]:
    """Form -> first form, of a category's lines; `where` names the category in an error."""
    if not isinstance(lines, list) or not all(isinstance(line, str | int) for line in lines):
        raise UserError(f"{where} is not a list of words; write `- dog dogs`, one word with its forms a line")
    first_form: dict[str, str] = {}
    for line in lines:
        forms = str(line).split()
        for form in forms:
            if tokenize(form) != [form]:
                raise UserError(f"{where}: {form!r} is no single token in lower case; correct it")
            if form in first_form:
                raise UserError(f"{where} has {form!r} twice; keep one")
            first_form[form] = forms[0]
    return first_form
