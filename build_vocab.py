"""Build the vocabulary from the training captions and show what it covers.

train.py builds the same vocabulary without this script. Run it to inspect or edit the words: train.py uses
the file as long as the training captions and data.min_freq stay the same. A file whose words were edited is
not overwritten.
"""

from startup import run_script

from pathlib import Path

from config_reading import config_parser, load_config
from data.captions import SPLITS, read_table
from data.sample import draw_if_missing
from data.vocab import SPECIAL, Vocabulary, count_words, vocabulary_path
from files import require_regular
from outputs import OutputFolder
from utils import UserError


def main() -> None:
    parser = config_parser(__doc__, ("data",))
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="file to write (default: vocab.json beside the captions, where train.py finds it)",
    )  # fmt: skip
    parser.add_argument(
        "--top",
        type=int,
        default=20,
        metavar="N",
        help="number of frequent words to print (default: 20)",
    )
    args = parser.parse_intermixed_args()
    if args.top < 0:
        raise UserError(f"--top {args.top} is less than 0; pass 0 to print no words")
    config = load_config(args.config, args.overrides)
    output = vocabulary_path(config.data) if args.output is None else args.output
    folder = OutputFolder(output.parent)
    require_regular(output)
    folder.check([output.name])

    draw_if_missing(config.data.captions)
    # A vocabulary needs no images. If there is an image folder, captions without an image are left out, as
    # in train.py.
    splits_with_images = SPLITS if config.data.images.is_dir() else ()
    table = read_table(config.data, splits_with_images)
    captions = table.loc[table["split"] == "train", "caption"]
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


if __name__ == "__main__":
    run_script(main)
