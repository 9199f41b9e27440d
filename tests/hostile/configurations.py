"""Configurations: a value is used as it is meant, or refused in one line that names its key."""

from pathlib import Path

from config import Config
from config_reading import all_keys, load_config, make_config
from tests.hostile.attempt import Hostile, Outcome, either, nothing, refused, script, works
from training.phases import phase_configs

_HUGE = "9" * 5000
# Values as they stand in YAML, tried for every key.
VALUES = (
    "", "null", "true", "-1", "0", "1.5", "1e30", ".inf", "-.inf", ".nan", "NaN", "10000000000000000000000",
    _HUGE, "0x7fffffffffffffff", "[]", "{}", "[[1]]", "{a: 1}", "2020-01-01", "2020-13-45",
    "2020-01-01 25:61:00", "''", "' '", '"\\0"', '"\\e[31m"', '"\\ud800"', "/dev/zero", "..", ".",
    "!!binary aGk=", "!!set {a}", "'" + "x" * 5000 + "'",
)  # fmt: skip


def keys() -> list[str]:
    """All keys of the configuration but those of phases."""
    return list(all_keys())


def is_a_configuration(outcome: Outcome) -> None:
    """A configuration without numbers that are none, or one line."""
    either(outcome)
    if isinstance(outcome.value, Config):
        numbers = [
            v for section in outcome.value.as_dict().values() for v in section.values() if type(v) is float
        ]
        assert all(abs(number) < float("inf") for number in numbers), "a number is not finite"


def _values() -> dict[str, list[Hostile]]:
    """By key, an input for each value."""
    by_key = {}
    for key in keys():
        section, name = key.split(".")
        boolean = type(getattr(getattr(Config(), section), name)) is bool

        def refuses_booleans(outcome: Outcome, key=key, section=section, name=name, boolean=boolean) -> None:
            is_a_configuration(outcome)
            if isinstance(outcome.value, Config) and not boolean:
                value = getattr(getattr(outcome.value, section), name)
                assert not isinstance(value, int | float), f"{key}=true is the number {value}"

        by_key[key] = [
            Hostile(
                f"{key}={value[:20]}",
                nothing,
                lambda _, override=f"{key}={value}": make_config({}, [override]),
                refuses_booleans if value == "true" else is_a_configuration,
            )
            for value in VALUES
        ]
    return by_key


def _overrides() -> list[Hostile]:
    texts = (
        "", "=", ".", ".=", "a", "a=1", "a.b", "a.b=1", "train.=1", ".epochs=1", "train.epochs",
        "train..epochs=1", "train.epochs.x=1", "train.epochs=[", "train.epochs=" + "[" * 3000,
        "train.epochs=&a [*a]", "train.epochs=*a", "train.epochs=!!python/object/apply:os.system [id]",
        "train.epochs=\0", "train.epochs=\x1b[31m", "\ud800.x=1", "train.epochs=\ud800", "run.name=../x",
        "run.name=a/b", "run.name=..", "run.name=.", "run.name=" + "n" * 300, "run.name=\n", "run.name='a\n'",
        "__class__.x=1", "train.__init__=1", "train.model_fields=1", "run.folder=''",
    )  # fmt: skip
    return [
        Hostile(
            f"override {text[:40]!r}",
            nothing,
            lambda _, text=text: make_config({}, [text]),
            is_a_configuration if text in ("run.folder=''", "train.epochs=\0") else refused(),
        )
        for text in texts
    ]


def _phases() -> list[Hostile]:
    """Phases: all configurations of a training, or one line."""
    texts = [f"phases.a.train.lr={value}" for value in VALUES]
    texts += [f"phases.a.data.augment={value}" for value in VALUES]
    texts += [f"phases={value}" for value in VALUES] + [f"phases.a={value}" for value in VALUES]
    texts += [f"phases.a.train={value}" for value in VALUES]
    texts += ["phases.a.b.c.d.e=1", "phases.=1", "phases..train.lr=1", "phases.a.=1", "phases.a.train.=1"]

    def phases_of(text: str) -> list[Config]:
        return phase_configs(make_config({}, [text]))

    return [
        Hostile(f"override {text[:40]!r}", nothing, lambda _, text=text: phases_of(text), either)
        for text in texts
    ]


def _files() -> list[Hostile]:
    """YAML files."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts: dict[str, str | bytes] = {
        "a list": "[1, 2]",
        "a number": "7",
        "text": "train",
        "a date": "2020-13-45",
        "a date as a key": "2020-01-01: {epochs: 1}",
        "a date as a value": "train: {epochs: 2020-13-45}",
        "a section that is null": "train:",
        "a section that is a list": "train: [1]",
        "a section that is a number": "train: 7",
        "a key that is a number": "train: {1: 2}",
        "a key that is null": "train: {null: 2}",
        "a key that is a list": "train: {[1, 2]: 3}",
        "a section that is a number as key": "1: {epochs: 2}",
        "tabs": "train:\n\tepochs: 1",
        "unclosed": "train: {epochs: 1",
        "two documents": "train: {epochs: 1}\n---\ntrain: {epochs: 2}",
        "an alias of itself": "train: &t {epochs: *t}",
        "an unknown alias": "train: *t",
        "aliases that multiply": bomb,
        "a merge of a number": "train: {<<: 7}",
        "a python object": "train: !!python/object/apply:os.system [id]",
        "an unknown tag": "train: !x {epochs: 1}",
        "broken base64": "train: {monitor: !!binary 'a'}",
        "deep nesting": "[" * 3000,
        "deep nesting of a value": "train: {epochs: " + "[" * 3000,
        "deep mappings": "".join(f"{' ' * i}a:\n" for i in range(1500)),
        "a huge number": f"train: {{epochs: {_HUGE}}}",
        "not UTF-8": b"train: {monitor: \xff}",
        "NUL": b"train: {monitor: a\0b}",
        "zeros": bytes(999),
        "in UTF-16 without a mark": "train: {epochs: 1}".encode("utf-16-le"),
        "escape sequences": b"train: {monitor: '\x1b[31m'}",
        "an unknown section": "trian: {epochs: 1}",
        "an unknown section with escapes": '"\\e[2J": {epochs: 1}',
    }
    found = []
    for name, text in texts.items():
        content = text if isinstance(text, bytes) else text.encode()
        found.append(
            Hostile(
                f"configuration: {name}",
                lambda folder, content=content: (folder / "bad.yaml").write_bytes(content),
                script(
                    "build_vocab",
                    "--config",
                    "bad.yaml",
                    "data.captions=data/captions.csv",
                    "data.images=data/images",
                ),
                refused("bad.yaml"),
            )
        )
    for name, text in {
        "empty": "",
        "a comment": "# nothing\n",
        "null": "null",
        "utf-8-sig": "\ufefftrain: {epochs: 1}",
    }.items():
        found.append(
            Hostile(
                f"configuration: {name}",
                lambda folder, text=text: (folder / "bad.yaml").write_text(text, "utf-8"),
                lambda _: load_config(Path("bad.yaml")),
                works,
            )
        )
    return found


VALUES_OF_KEYS = _values()
INPUTS = [*_overrides(), *_phases(), *_files()]
