"""Caption -> tokens, as the COCO caption evaluation splits them, without its Java program.

Published BLEU, ROUGE-L and CIDEr rest on pycocoevalcap's tokenizer, a Java program that splits in the style
of the Penn Treebank and lower-cases; then a list of punctuation marks is removed. Tokens of another make are
scores on another scale, so this module splits as that program does, its oddities included: `can't` is `ca`
and `n't`, `(` is `-lrb-`, `!` goes but `!!!` stays, `colour` stays `colour`.

The expressions below are a description of what the program answers, found by comparing answers:
benchmarks/tokenizer_agreement.py does that for any captions file.
"""

import re
from functools import lru_cache

# Letters and digits, with the accents and vowel signs that some scripts write as characters of their own.
_MARK = r"\u0300-\u036f\u0900-\u0903\u093a-\u094f\u0981-\u0dff"
_LETTER = rf"(?:[^\W\d_]|[{_MARK}])"
_ALNUM = rf"(?:[^\W_]|[{_MARK}])"
_APOSTROPHE = "['’]"  # what people type for one
_CLITIC = rf"{_APOSTROPHE}(?:s|m|d|re|ve|ll)(?!{_ALNUM})"
_NOT = rf"n{_APOSTROPHE}t(?!{_ALNUM})"

# Words that keep the full stop behind them.
_ABBREVIATIONS = "|".join(
    """
    mr mrs ms dr drs prof st mt jr sr vs etc co inc ltd corp dept gov gen sgt capt lt col rev ave blvd rd
    sq ft jan feb apr jun jul aug sept? oct nov dec mon tues? wed thurs? fri
    """.split()
)
# fmt: off
# Two words in one.
_JOINED = {"cannot": ["can", "not"], "gonna": ["gon", "na"], "wanna": ["wan", "na"], "gotta": ["got", "ta"],
           "gimme": ["gim", "me"], "lemme": ["lem", "me"], "'tis": ["'t", "is"], "'twas": ["'t", "was"]}
# fmt: on

# At each position the first alternative that matches is the token.
_TOKEN = re.compile(
    "|".join(
        (
            rf"{_LETTER}+?(?={_NOT})",  # ca n't, did n't
            rf"{_NOT}|{_CLITIC}",
            rf"{_APOSTROPHE}(?:tis|twas|til|em|\d0s)(?!{_ALNUM})",
            rf"{_APOSTROPHE}n{_APOSTROPHE}",  # slip 'n' slide
            rf"[old]{_APOSTROPHE}{_ALNUM}{{2,}}",  # o'clock
            rf"(?:{_ABBREVIATIONS})\.(?!{_ALNUM})|no\.(?= ?\d)",
            rf"(?:[^\W\d_]\.)+(?!{_ALNUM})",  # u.s., and the letter p.
            r"[-+]?\d+(?:[.,:]\d+)+|(?<!\w)[-+]\d+(?!\w)",  # 1,000 and 10:30
            rf"{_ALNUM}+(?:[-/]{_ALNUM}+|_+{_ALNUM}+|\.{_LETTER}+)*",  # black-and-white, and/or
            r"-[lr][rsc]b-",  # a bracket, when a caption is tokens already
            r"\.\.\.|--+|[!?]{2,}|[*_#@]+|''|``",
            r"[^\w\s\x00-\x1f\x7f\u200b-\u200f\ue000-\uffff\U00010000-\U0010ffff]",  # no emoji
        )
    )
)

# fmt: off
_SPELLING = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
             "“": "``", "”": "''", "‘": "`", "’": "'", "…": "...", "–": "--", "—": "--", "---": "--",
             '"': "''", "£": "#", "€": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4"}
# fmt: on
# What pycocoevalcap removes. It means to remove brackets too, but names them in capitals, and so they stay.
_REMOVED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])


def tokenize(caption: str) -> list[str]:
    """The tokens of a caption: lower case, no punctuation; none is empty or contains a space.

    Not followed into the corners: addresses, telephone numbers, smileys and markup, where the Java program
    has rules of their own, and the full stop after a last single letter ("plan B."), where its answer
    depends on the caption that comes next.
    """
    text = caption.lower().replace("&amp;", "&").replace("\xad", "")
    # Words come again and again, so what stands between spaces is split once. Only "no." looks further: it
    # keeps its full stop before a number.
    if "no." in text:
        return list(_split.__wrapped__(text))
    return [token for piece in text.split() for token in _split(piece)]


@lru_cache(maxsize=1 << 16)  # COCO has fewer different words than that
def _split(text: str) -> tuple[str, ...]:
    tokens = []
    for token in _TOKEN.findall(text):
        token = _SPELLING.get(token, token).replace("’", "'")
        tokens += _JOINED.get(token, [token])
    return tuple(token for token in tokens if token not in _REMOVED)
