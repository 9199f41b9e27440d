"""Caption -> tokens, as the COCO caption evaluation splits them, without its Java program.

Published BLEU, ROUGE-L and CIDEr scores use pycocoevalcap's tokenizer. It runs a Java program (Stanford
CoreNLP's PTBTokenizer), which splits in the style of the Penn Treebank and lower-cases, and then removes a
list of punctuation marks. Scores of other tokens are not comparable, so this module splits exactly as that
program does: `can't` is `ca` and `n't`, `(` is `-lrb-`, `!` is removed but `!!!` is kept.

nltk's NLTKWordTokenizer splits in the same style. Each of its rules is a regular expression with a
replacement that puts spaces around tokens; after the last rule, the text is split at its spaces. The rules
added here cover the differences between nltk and the Java program. They were found by comparing tokens, as
benchmarks/tokenizer_agreement.py does for any captions file.
"""

import re
from functools import lru_cache
from typing import ClassVar

from nltk.tokenize.destructive import NLTKWordTokenizer

# The characters of a word, for character classes: letters, digits, `_`, and the accents and vowel signs that
# some scripts write as separate characters.
_WORD = r"\w\u0300-\u036f\u0900-\u0903\u093a-\u094f\u0981-\u0dff"
_START, _END = rf"(?<![{_WORD}])", rf"(?![{_WORD}])"  # of a word
_CLITIC = rf"(?:[smd]|re|ve|ll){_END}"  # behind an apostrophe

# Words that keep the full stop after them.
_ABBREVIATIONS = "|".join(
    r"""
    mr mrs ms messrs drs? profs? ste? mt jr sr bros vs etc cos? inc ltd corp plc dept est govs? gen sgt cpl
    pvt maj adm capt cmdr lt col rev hon pres sens? reps? atty ave blvd rd ct sq ft bldg assn assoc univ intl
    natl tel ext al cf esq ph ph\.d md alex wm jos cie mfg treas supt insp lieut jan feb mar apr jun jul aug
    sept? oct nov dec mon tues? wed thu thurs fri ala ariz calif conn fla ga ind ky mich minn mo mont neb nev
    tenn va vt wis wyo
    """.split()
)

# Tokens of the Java program that nltk's rules or those below would split.
_WHOLE = "|".join(
    (
        rf"{_START}(?:{_ABBREVIATIONS})\.(?![^\W\d])",  # mr.
        rf"{_START}no\.(?= ?\d)",  # no. 5
        rf"(?<![{_WORD}.])(?:[^\W\d_]\.)+(?![^\W\d])",  # u.s., and the letter p.
        rf"'(?:em|til|cause|\d0s){_END}",  # the '90s
        rf"'t(?=(?:is|was){_END})",  # 't is
        rf"'n(?:'|{_END})",  # rock 'n' roll
        rf"{_START}(?:[old]'[{_WORD}]{{2,}}|ma'am|y'(?=all))",  # o'clock
        rf"{_START}-[lr][rsc]b-{_END}",  # a bracket, when a caption is tokens already
        r"[!?]{2,}|@@+|##+|\*\*+",  # ?!
    )
)
# While the rules are applied, a private-use character replaces each mark in these tokens.
_HIDE = {ord(mark): 0xE000 + place for place, mark in enumerate(".'-!?@#*")}
_SHOW = {hidden: mark for mark, hidden in _HIDE.items()}


def _rules(*rules):
    """Pairs of a pattern and a replacement, in the form that nltk uses."""
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


class _PTBTokenizer(NLTKWordTokenizer):
    """nltk's tokenizer with the Java program's rules added. It expects lower-case text."""

    STARTING_QUOTES: ClassVar = [
        *_rules(
            # Emoji, control characters and halves of surrogate pairs belong to no token.
            (r"(?!\w)[\x00-\x1f\x7f-\x9f\u200b-\u200f\ud800-\uffff\U00010000-\U0010ffff]", " "),
            # i'd've, he's-she's: nltk splits a clitic off only if a space follows.
            (rf"('{_CLITIC}|n't{_END})", r"\1 "),
            (_WHOLE, lambda match: f" {match[0].translate(_HIDE)} "),
            # 5'10: any other apostrophe is a quotation mark, even between two digits or letters.
            (rf"'(?!{_CLITIC}|(?<=n')t{_END})", " ' "),
        ),
        *NLTKWordTokenizer.STARTING_QUOTES,
    ]

    PUNCTUATION: ClassVar = [
        *_rules(
            # a dog runs. it barks.: nltk splits off only the last full stop. "photo.jpg" is one token.
            (r"\.{3}", " ... "),
            (rf"\.{_END}|{_START}\.(?!\d)", " . "),
            # 10:30am, $1.99/lb, 10:30-11:30: the number is a token. "1.5-inch" is one token.
            (r"(\d[.,:]\d+)(?=[^\W\d_]|/)|(:\d+)(?=-)", r"\1\2 "),
            # dogs,3 is "dogs" and ",3". nltk does not split at a comma or colon before a digit.
            (r"[.,:](?=\d)(?<!\d.)", r" \g<0>"),
            (r"[,:](?=[,:])", r" \g<0> "),
            # a__b, _c: nltk never splits at "_"; the Java program leaves only a_b whole.
            (r"__+|(?<![^\W_])_|_(?![^\W_])", r" \g<0> "),
            # -dash, half-pipe-: nltk splits only at two hyphens. Before a number, one is a sign: -5.
            (r"-{3,}", " -- "),
            (rf"(?<![{_WORD}-])([-+]\d+)(?=-)", r"\1 "),
            (rf"(?<![{_WORD}\ue000-\uf8ff-])-(?![-\d])|(?<!-)-(?![{_WORD}-])", " - "),
            # w/: nltk never splits at a slash; the Java program leaves only and/or whole.
            (rf"{_START}/|/{_END}", " / "),
            # a+b is three tokens, 5+5 is "5" and "+5".
            (r"\+", " +"),
            (r"\+(?!\d)", "+ "),
            # a=b, 5°c: symbols for which nltk has no rule.
            (rf"[=\\^|~]|[^{_WORD}\s!-~\ue000-\uf8ff]", r" \g<0> "),
        ),
        *NLTKWordTokenizer.PUNCTUATION,
    ]

    # "gonna" is two tokens, but "gonna-be" is one. nltk splits both.
    CONTRACTIONS2: ClassVar = [
        re.compile(rf"(?<= ){rule.pattern.removeprefix('(?i)')}(?= )")
        for rule in NLTKWordTokenizer.CONTRACTIONS2
    ]


_TOKENIZER = _PTBTokenizer()
# Words without punctuation that nltk splits (its CONTRACTIONS2).
_TWO_TOKENS = frozenset("cannot gimme gonna gotta lemme wanna".split())

# fmt: off
# Characters that the Java program writes in ASCII.
_SPELLING = str.maketrans({
    "’": "'", "‘": "`", "“": '"', "”": '"', "«": '"', "»": '"', "…": " ... ",
    "‒": " -- ", "–": " -- ", "—": " -- ", "―": " -- ", "£": " # ", "€": " $ ", "¢": " cents ",
    "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 "})
# fmt: on
# Tokens that pycocoevalcap removes. Its list has the brackets in capitals, so they are kept.
_REMOVED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])


def tokenize(caption: str) -> list[str]:
    """The tokens of a caption: lower case, no punctuation; none is empty or contains a space or a
    control character. The time grows linearly with the length of the caption.

    Not covered: addresses, telephone numbers, smileys and markup, for which the Java program has special
    rules, and the full stop after a single letter at the end ("plan B."), for which its result depends on
    the next caption.
    """
    text = caption.lower().replace("&amp;", "&").replace("\xad", "")
    # Words repeat, so each piece between spaces is split only once and cached. Only "no." depends on the next
    # piece: it keeps its full stop before a number.
    if "no." in text:
        return list(split.__wrapped__(text))
    return [token for piece in text.split() for token in split(piece)]


@lru_cache(maxsize=1 << 16)  # COCO has fewer different words than that
def split(text: str) -> tuple[str, ...]:
    """The tokens of lower-case text. `tokenize` calls it word by word."""
    if text.isalpha() and text not in _TWO_TOKENS:  # most words: nothing to split, and nltk takes time
        return (text,)
    tokens = _TOKENIZER.tokenize(text.translate(_SPELLING), convert_parentheses=True)
    shown = (token.translate(_SHOW).lower() for token in tokens)  # nltk writes -LRB-
    return tuple(token for token in shown if token not in _REMOVED)
