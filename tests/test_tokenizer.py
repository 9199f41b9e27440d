"""data/tokenizer.py: the tokens of the COCO caption evaluation, without Java."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize.destructive import MacIntyreContractions, NLTKWordTokenizer

from benchmarks import tokenizer_agreement
from benchmarks.tokenizer_agreement import java_tokens
from data.tokenizer import split, tokenize
from utils import CONTROL

# A caption, and below it the tokens that the Java program answered; () where there is none.
_LINES = r"""
A man in a pink shirt climbs a rock face .
    a man in a pink shirt climbs a rock face
A little girl covered in paint sits in front of a painted rainbow with her hands in a bowl.
    a little girl covered in paint sits in front of a painted rainbow with her hands in a bowl
The dog's owner can't see the dogs' ball; it's under the boys' car.
    the dog 's owner ca n't see the dogs ball it 's under the boys car
They're sure he'll say we've won, I'd bet I'm right.
    they 're sure he 'll say we 've won i 'd bet i 'm right
She won't go, he doesn't care, it ain't over and they shan't.
    she wo n't go he does n't care it ai n't over and they sha n't
"Look!" says the sign: "NO PARKING".
    look says the sign no parking
A sign reads 'keep out' on the fence.
    a sign reads keep out on the fence
A woman (in red) and a man [in blue] {behind} a fence.
    a woman -lrb- in red -rrb- and a man -lsb- in blue -rsb- -lcb- behind -rcb- a fence
A well-dressed man in a T-shirt and a 3-year-old boy with a jack-o-lantern.
    a well-dressed man in a t-shirt and a 3-year-old boy with a jack-o-lantern
Two men -- one tall - one short — talk–quietly---together.
    two men one tall one short talk quietly together
A boy and/or a girl w/ a black/white-striped umbrella.
    a boy and/or a girl w / a black/white-striped umbrella
He cannot stop; she's gonna dance, they wanna sing, gotta run, gimme that, lemme see.
    he can not stop she 's gon na dance they wan na sing got ta run gim me that lem me see
'Tis the season and 'twas the night.
    't is the season and 't was the night
Mr. Smith and Dr. Jones of St. Louis meet Mrs. Lee in the U.S. Army.
    mr. smith and dr. jones of st. louis meet mrs. lee in the u.s. army
Apples, pears, etc. are sold in the U.S.A. at 5 p.m. by Smith Inc. staff.
    apples pears etc. are sold in the u.s.a. at 5 p.m. by smith inc. staff
A price of $5.50, 100% off, £3, €4, 50¢ and #1.
    a price of $ 5.50 100 % off # 3 $ 4 50 cents and # 1
Over 1,000 people ran 3.5 miles in 10:30 on 12/31/2012 at -5 degrees.
    over 1,000 people ran 3.5 miles in 10:30 on 12/31/2012 at -5 degrees
1/2 of a cake, 2 1/2 pies, ½ a pear and a 1/2-inch nail.
    1/2 of a cake 2 1/2 pies 1/2 a pear and a 1/2-inch nail
Player 10, in the 1990's, the '90s and the 80s, scored 3-1.
    player 10 in the 1990 's the '90s and the 80s scored 3-1
Wait... what?! No!!! Really?? Yes…  ok. . . fine..
    wait what ?! no !!! really ?? yes ok fine
A café with a naïve fiancée in São Paulo on Straße 5.
    a café with a naïve fiancée in são paulo on straße 5
Мальчик с собакой. 日本の犬。 한국 소년. שלום עולם. مرحبا
    мальчик с собакой 日本の犬 。 한국 소년 שלום עולם مرحبا
एक लड़का नमस्ते कहता है
    एक लड़का नमस्ते कहता है
“Curly quotes” and ‘single ones’ aren’t the boy’s don’t.
    curly quotes and single ones are n't the boy 's do n't
A * b + c = d ~ e ^ f | g \ h < i > j _ k
    a * b + c = d ~ e ^ f | g \ h < i > j _ k
A grey dog in the colour of the theatre centre
    a grey dog in the colour of the theatre centre
JACK RUSSELL TERRIER'S BALL ISN'T HERE
    jack russell terrier 's ball is n't here
.
    ()
?!
    ?!
...
    ()
'
    ()
"
    ()
a
    a
A
    a
don't
    do n't
a 5'10" man and a 6' woman
    a 5 10 man and a 6 woman
-LRB- not a bracket -RRB-
    -lrb- not a bracket -rrb-
A man's, woman's. Dogs', cats'.
    a man 's woman 's dogs cats
Jan. Feb. Mon. Gov. Prof. Co. vs. Ltd.
    jan. feb. mon. gov. prof. co. vs. ltd.
pre-school pro-life anti-war ex-wife half-pipe- -dash
    pre-school pro-life anti-war ex-wife half-pipe dash
the 1st, 2nd, 3rd and 20th of 4x4s and c3pos
    the 1st 2nd 3rd and 20th of 4x4s and c3pos
photo5.jpg and 5b.png here
    photo5.jpg and 5b.png here
A "T" and an 'x' on the wall.
    a t and an x on the wall
She's the dog's, isn't she? I'd've said so; they couldn't've.
    she 's the dog 's is n't she i 'd 've said so they could n't 've
King's Cross, Levi's jeans, kids', James' and Charles's hats
    king 's cross levi 's jeans kids james and charles 's hats
Up-to-date, two-year-old, half-naked; blue-/green-eyed.
    up-to-date two-year-old half-naked blue / green-eyed
i'm, you're, we'll, they'd, who's, o'er
    i 'm you 're we 'll they 'd who 's o'er
Two women…one man—one dog–one cat
    two women one man one dog one cat
Baseball player #5, #23 and number five.
    baseball player # 5 # 23 and number five
S.O.S. D.C. L.A. U.K. a.k.a. the team
    s.o.s. d.c. l.a. u.k. a.k.a. the team
A sign: "$1.99/lb.", "50% OFF", "2-for-1"
    a sign $ 1.99 / lb 50 % off 2-for-1
A "No Parking" sign; "STOP!", he said.
    a no parking sign stop he said
Don't! Can't? Won't.
    do n't ca n't wo n't
A man (woman?) - or boy? - runs ...
    a man -lrb- woman -rrb- or boy runs
the the The THE
    the the the the
A  dog..and a cat , running !
    a dog and a cat running
Rock 'n' roll, mac'n cheese, ma'am, y'all, 'cause we can.
    rock 'n' roll mac 'n cheese ma'am y' all 'cause we can
Dogs:3, cats,5 and,,birds...7 of .5 and v.5
    dogs :3 cats ,5 and birds 7 of .5 and v. 5
A snake_case __ word, _this one, that_ one and an a__b
    a snake_case __ word _ this one that _ one and an a __ b
a -5-year-old +5-year-old in a 1.5-inch-long 5.5-inch coat from 10:30-11:30am
    a -5 year-old +5 year-old in a 1.5-inch-long 5.5-inch coat from 10:30 -11:30 am
5+5=10, a+b and +5
    5 +5 = 10 a + b and +5
«Un» pas ‒ deux ― trois, 1¼ et ¾
    un pas deux trois 1 1/4 et 3/4
A wanna-be, a cannot-do, he's-she's and half-full---half-empty----dash
    a wanna-be a cannot-do he 's she 's and half-full half-empty dash
Ms. Messrs. Drs. Profs. Ste. Mt. Jr. Sr. Bros. Cos. Corp. Plc. Dept. Est. Govs. Gen.
    ms. messrs. drs. profs. ste. mt. jr. sr. bros. cos. corp. plc. dept. est. govs. gen.
Sgt. Cpl. Pvt. Maj. Adm. Capt. Cmdr. Lt. Col. Rev. Hon. Pres. Sens. Reps. Atty. Supt. Insp. Lieut.
    sgt. cpl. pvt. maj. adm. capt. cmdr. lt. col. rev. hon. pres. sens. reps. atty. supt. insp. lieut.
Ave. Blvd. Rd. Ct. Sq. Ft. Bldg. Assn. Assoc. Univ. Intl. Natl. Tel. Ext. Al. Cf. Esq. Ph. Ph.D. Md.
    ave. blvd. rd. ct. sq. ft. bldg. assn. assoc. univ. intl. natl. tel. ext. al. cf. esq. ph. ph.d. md.
Alex. Wm. Jos. Cie. Mfg. Treas. Mar. Apr. Jun. Jul. Aug. Sept. Oct. Nov. Dec. Tues. Wed. Thu. Thurs. Fri.
    alex. wm. jos. cie. mfg. treas. mar. apr. jun. jul. aug. sept. oct. nov. dec. tues. wed. thu. thurs. fri.
Ala. Ariz. Calif. Conn. Fla. Ga. Ind. Ky. Mich. Minn. Mo. Mont. Neb. Nev. Tenn. Va. Vt. Wis. Wyo.
    ala. ariz. calif. conn. fla. ga. ind. ky. mich. minn. mo. mont. neb. nev. tenn. va. vt. wis. wyo.
""".strip("\n")
FROZEN = [
    (caption, [] if tokens == "    ()" else tokens.split())
    for caption, tokens in zip(_LINES.split("\n")[::2], _LINES.split("\n")[1::2], strict=True)
]


@pytest.mark.parametrize(("caption", "tokens"), FROZEN, ids=[caption for caption, _ in FROZEN])
def test_tokens_are_those_of_the_coco_evaluation(caption, tokens):
    assert tokenize(caption) == tokens


@pytest.mark.java
def test_the_java_program_gives_the_frozen_tokens():
    # The program lets what ends a line depend on the next line, so each is followed by an ordinary caption.
    captions = [line for caption, _ in FROZEN for line in (caption, "A dog runs .")]
    assert java_tokens(captions)[::2] == [tokens for _, tokens in FROZEN]


def test_nltk_splits_the_words_with_marks_and_needs_no_downloaded_data(monkeypatch):
    texts = []
    nltk_tokenize = NLTKWordTokenizer.tokenize

    def recording(tokenizer, text, **options):
        texts.append(text)
        return nltk_tokenize(tokenizer, text, **options)

    def download(*args, **kwargs):
        raise AssertionError("nltk data requested")

    monkeypatch.setattr(NLTKWordTokenizer, "tokenize", recording)
    monkeypatch.setattr("nltk.data.find", download)
    monkeypatch.setattr("nltk.download", download)
    split.cache_clear()
    assert tokenize("The dog can't run, it cannot.") == "the dog ca n't run it can not".split()
    assert texts == ["can't", "run,", "cannot."]


def test_every_word_of_letters_that_nltk_splits_is_split():
    words = re.findall(r"\((\w+)\)\(\?#X\)\((\w+)\)", " ".join(MacIntyreContractions.CONTRACTIONS2))
    assert ("can", "not") in words
    for first, second in words:
        assert tokenize(first + second) == [first, second]


@pytest.mark.parametrize("caption", ["", " ", "\n", "\t", "\u00a0", "\u200b", "😀", "\x00", "...", "\ue000"])
def test_a_caption_without_words_has_no_tokens(caption):
    assert tokenize(caption) == []


@pytest.mark.parametrize("space", ["\n", "\r\n", "\r", "\u2028", "\t", "\u00a0", "\u3000", "   ", "\n\n"])
def test_any_space_or_line_break_separates_words(space):
    assert tokenize(f"{space}A dog{space}runs.{space}") == ["a", "dog", "runs"]


def test_a_fraction_with_a_whole_number_is_two_tokens():
    assert tokenize("2 1/2 pies") == ["2", "1/2", "pies"]


def test_what_cannot_be_seen_leaves_no_trace():
    assert tokenize("co\u00adoperate no\u200bbreak \ufeffdog 😀cat") == [
        "cooperate",
        "no",
        "break",
        "dog",
        "cat",
    ]


ANY_CHARACTER = st.characters(exclude_categories=[])  # halves of surrogate pairs as well


@settings(deadline=None, derandomize=True)  # the same on every machine
@given(st.text(ANY_CHARACTER))
def test_tokens_of_any_text_are_lower_case_and_free_of_spaces_and_control_characters(text):
    for token in tokenize(text):
        assert token
        assert token == token.lower()
        assert token.split() == [token]
        assert not CONTROL.search(token)


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xD800, 0xDFFF])
def test_a_control_character_separates_words_and_is_in_none(code):
    assert tokenize(f"a{chr(code)}dog. {chr(code)}[2J") == ["a", "dog", "-lsb-", "2j"]


@settings(deadline=10_000, derandomize=True, max_examples=25)  # milliseconds: catastrophic is another word
@given(st.text(ANY_CHARACTER, max_size=3), st.text(ANY_CHARACTER, min_size=1, max_size=3))
def test_a_long_text_takes_a_time_that_grows_with_its_length(start, unit):
    tokenize(start + unit * (10_000 // len(unit)) + "!")


CHUNKS = st.sampled_from(
    [
        "dog",
        "Dogs'",
        "cat's",
        "can't",
        "they're",
        "T-shirt",
        "3",
        "1,000",
        "3-year-old",
        "(red)",
        "and/or",
        "café",
        "R'n'B",
        "gonna",
        "cannot",
        "U.S.",
        "Mr.",
    ]
)
MARKS = st.sampled_from([" ", ", ", " . ", "! ", ' "', '" ', "; ", " -- ", " & "])


@settings(deadline=None, derandomize=True)  # the same on every machine
@given(st.lists(st.tuples(CHUNKS | st.from_regex(r"[a-z]{2,9}", fullmatch=True), MARKS), max_size=12))
def test_tokens_joined_by_spaces_are_the_same_tokens_again(pieces):
    """True of captions in general; not of single letters with a full stop."""
    tokens = tokenize("".join(word + mark for word, mark in pieces))
    assert tokenize(" ".join(tokens)) == tokens


@pytest.mark.parametrize(
    "unit", ["a", "कि", "&eacute;", "a.", "a-", "1,", "<a ", "<a b=c ", "a@", "n't", "1 "]
)
def test_a_long_repetition_takes_no_exponential_time(unit):
    tokenize(unit * 2000)  # it returns: that is all


def test_the_agreement_script_names_what_is_missing(monkeypatch, tmp_path, capsys):
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption\na.jpg,A dog runs .\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    for path, message in ((captions, "no Java found"), (tmp_path / "none.csv", "none.csv")):
        monkeypatch.setattr("sys.argv", ["tokenizer_agreement.py", str(path)])
        with pytest.raises(SystemExit) as stop:
            tokenizer_agreement.run_script(tokenizer_agreement.main)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.java
def test_the_agreement_script_counts_the_captions_that_differ(monkeypatch, tmp_path, capsys):
    captions = tmp_path / "captions.csv"
    captions.write_text('image,caption\na.jpg,"A dog (red) runs ."\nb.jpg,A cat can\'t .\n')
    monkeypatch.setattr("sys.argv", ["tokenizer_agreement.py", str(captions)])
    tokenizer_agreement.main()
    assert "2 captions, 0 differ" in capsys.readouterr().out


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["no. ", "No.", "5", " ", "can't", "'tis", "-lrb-", "...", "İ", "'"]) | st.text()
    )
)
def test_a_caption_splits_as_a_whole_as_it_does_word_by_word(parts):
    text = "".join(parts).lower().replace("&amp;", "&").replace("\xad", "")
    assert tokenize(text) == list(split.__wrapped__(text))


def test_a_full_stop_before_a_number_stays():
    assert tokenize("No. 5 is red, no. it is not") == ["no.", "5", "is", "red", "no", "it", "is", "not"]
