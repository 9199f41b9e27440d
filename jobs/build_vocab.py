"""The job of build_vocab.py: the vocabulary of the training captions, and what it covers."""

import argparse

from config import Config
from data.captions import read_table, training_captions
from data.sample import draw_if_missing
from data.splits import SPLITS
from data.vocab import SPECIAL, Vocabulary, count_words, vocabulary_path
from files import require_regular
from outputs import OutputFolder


def build_vocabulary(config: Config, args: argparse.Namespace) -> None:
    """Write the vocabulary, and print what it covers."""
    output = vocabulary_path(config.data) if args.output is None else args.output
    folder = OutputFolder(output.parent)
    require_regular(output)
    folder.check([output.name])

    draw_if_missing(config.data.captions)
    # A vocabulary needs no images. If there is an image folder, captions without an image are left out, as
    # in train.py.
    splits_with_images = SPLITS if config.data.images.is_dir() else ()
    table = read_table(config.data, splits_with_images, in_memory=("val", "test"))
    captions = training_captions(config.data, table)
    vocabulary = Vocabulary.build(captions, config.data.min_freq, config.data.captions)
    counts = count_words(captions)
    folder.write_text(output.name, vocabulary.as_json())

    num_words = len(vocabulary) - len(SPECIAL)
    print(f"{len(captions):,} training captions, {counts.total():,} words, {len(counts):,} distinct words")
    print(
        f"{num_words:,} words that occur {config.data.min_freq} times or more, and {len(SPECIAL)} special "
        f"tokens; they cover {vocabulary.coverage(captions):.1%} of the training words"
    )
    for split in ("val", "test"):
        others = table.loc[table["split"] == split, "caption"]
        if len(others):
            print(f"  and {vocabulary.coverage(others):.1%} of the words of {split}")
    if args.top:
        print("most frequent: " + ", ".join(f"{word} {n:,}" for word, n in counts.most_common(args.top)))
    print(f"wrote {output}")
