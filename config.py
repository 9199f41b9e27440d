"""The configuration: typed, documented, validated.

The description of each field is printed by `--help` and in error messages. config_reading.py reads the
values from YAML files and the command line.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from config_search import SearchConfig
from config_types import Count, Dim, Few, NameOrPath, Section, UserPath


class RunConfig(Section):
    name: str = Field(
        "flickr8k",
        pattern=r"^\.*[\w+]([\w.+ ()-]*[\w.+()-])?$",
        description="name of the run and its folder: letters, digits, spaces and . _ + - ( ), first a letter "
        "or digit",
    )
    folder: UserPath = Field(Path("runs"), description="folder that contains the run folders")
    seed: int = Field(
        1, ge=0, lt=2**32, description="random seed of initial weights, order, dropout and augmentation"
    )
    device: str = Field(
        "auto", description="auto (the accelerator that torch finds, else the CPU), cpu, cuda, cuda:1"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="mixed precision; auto: bfloat16 if the device supports it"
    )
    threads: int = Field(
        0, ge=0, le=10_000, description="CPU threads; 0: one for each core that no other program keeps busy"
    )
    deterministic: bool = Field(False, description="use deterministic CUDA kernels, which are slower")
    tensorboard: bool = Field(False, description="also log for TensorBoard (needs the package tensorboard)")


class DataConfig(Section):
    captions: list[UserPath] = Field(
        Path("archive/captions.csv"),  # type: ignore[arg-type]  # made a list below; --help shows the path
        min_length=1,
        description="captions file, or several: [a.json,b.json]; or shards: train-{000..999}.tar",
    )
    index_folder: UserPath = Field(Path("cache/shards"), description="shards: folder of their indexes")
    shuffle: Few = Field(8, description="shards: so many are open at once, and their images are shuffled")
    images: UserPath = Field(
        Path("archive/images"), description="image folder; image names are relative to it"
    )
    lists: UserPath | None = Field(
        None, description="folder of the lists Flickr_8k.*Images.txt, for captions without splits"
    )
    max_bad_rows: float = Field(
        0.05, ge=0, le=1, description="largest share of unusable rows to leave out; more is an error"
    )
    min_freq: Count = Field(5, description="words less frequent than this in training captions are <unk>")
    max_length: Few = Field(40, description="training captions are cut to this number of words")
    captions_per_image: Few = Field(5, description="largest number of captions per image and epoch")
    augment: list[Literal["crop", "flip", "colour"]] = Field(
        ["crop", "flip"], description="random changes of uncached training images and of augmented views"
    )
    workers: int = Field(
        2,
        ge=0,
        le=1024,
        description="processes that read images for a GPU; 0: the main process reads them. A CPU reads them "
        "with run.threads",
    )

    @field_validator("captions", mode="before")
    @classmethod
    def one_or_several(cls, captions):
        return captions if isinstance(captions, list) else [captions]


class EncoderConfig(Section):
    name: str = Field(
        "resnet50", description="classification model of torchvision, or timm/NAME for one of timm"
    )
    weights: NameOrPath = Field(
        "IMAGENET1K_V2",
        description="the library's name of weights (DEFAULT: its choice), path of a state dict, or none "
        "(random)",
    )
    layer: str | list[str] = Field(
        "last",
        description="stage whose output is the grid, such as layer3, or several: [layer3,layer4]; last: the "
        "last possible one",
    )
    grid: int | None = Field(None, ge=1, le=1024, description="resample the grid to this many cells per side")
    image_size: int | None = Field(
        None, ge=32, le=4096, description="pixels per side; empty: the weights' size"
    )
    fine_tune: str = Field(
        "none", description="none (frozen), all, or the first stage to train, such as layer4"
    )

    @field_validator("layer", mode="before")
    @classmethod
    def one_or_several(cls, layer):
        stages = layer if isinstance(layer, list) else [layer]
        if not stages or not all(isinstance(stage, str) and stage for stage in stages):
            raise ValueError("it must be a stage, or a list of stages")
        return stages[0] if len(stages) == 1 else stages

    @property
    def layers(self) -> list[str]:
        """The stages whose outputs are the grid."""
        return [self.layer] if isinstance(self.layer, str) else self.layer


class FeaturesConfig(Section):
    cache: bool = Field(True, description="compute the features of a frozen encoder once and keep them")
    folder: UserPath = Field(Path("cache/features"), description="folder of the feature cache")
    views: int = Field(
        1, ge=1, le=1000, description="views per training image: the image and augmented versions"
    )


class DecoderConfig(Section):
    kind: str = Field("attention", description="attention, lstm (no attention), or transformer")
    attention: Literal["additive", "dot"] = Field(
        "additive",
        description="kind=attention: additive (Show, Attend and Tell), or dot (multi-head, faster)",
    )
    heads: int = Field(
        8, ge=1, le=1024, description="attention=dot, transformer: heads, each with its own weights"
    )
    embeddings: NameOrPath = Field(
        "learned", description="learned, one_hot, or a text file of GloVe or word2vec vectors"
    )
    freeze_embeddings: bool = Field(False, description="do not train embeddings from a file")
    embed_dim: Dim = Field(512, description="size of a word embedding (not used with one_hot)")
    hidden_dim: Dim = Field(512, description="size of the LSTM state, or of the transformer's layers")
    feedforward_dim: Dim = Field(1024, description="transformer, refine: size inside each layer")
    attention_dim: Dim = Field(512, description="size of the keys and queries of attention")
    layers: int = Field(1, ge=1, le=8, description="layers of the LSTM or transformer (additive: one)")
    refine: int = Field(
        0, ge=0, le=8, description="attention, transformer: layers of self-attention over the cells"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout on attended features, embeddings and output")
    word_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the decoder's input words that are dropped in training"
    )
    tie_embeddings: bool = Field(True, description="share weights of embeddings and output layer")

    @property
    def name(self) -> str:
        """The name of the decoder in models/decoders/."""
        return "dot_attention" if (self.kind, self.attention) == ("attention", "dot") else self.kind

    @property
    def divided(self) -> list[str]:
        """The sizes that are divided among the heads."""
        if self.name == "dot_attention":
            return ["hidden_dim", "attention_dim"]
        return ["hidden_dim"] if self.name == "transformer" or self.refine else []

    @property
    def vectors(self) -> Path | None:
        """The file of initial embeddings, if there is one."""
        return None if self.embeddings in ("learned", "one_hot") else Path(self.embeddings)


class TrainConfig(Section):
    objective: str = Field(
        "cross_entropy",
        description="training objective: cross_entropy, self_critical or actor_critic",
    )
    epochs: Count = Field(15, description="passes over the training images")
    batch_size: Dim = Field(32, description="images per batch, each with its captions")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of the decoder")
    encoder_lr: float = Field(1e-4, gt=0, description="peak learning rate of a trained encoder")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")
    schedule: Literal["cosine", "plateau", "constant"] = Field(
        "cosine", description="learning rate after warm-up; plateau: halved if train.monitor does not improve"
    )
    warmup: float = Field(
        0.5, ge=0, le=10**9, description="epochs over which the learning rate rises to its peak"
    )
    plateau_patience: int = Field(
        2, ge=0, le=10**9, description="plateau: epochs without improvement before halving"
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="share of the target's probability that is spread over all words"
    )
    scheduled_sampling: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="cross_entropy: share of input words sampled from the model in the last epoch",
    )
    attention_weight: float = Field(1.0, ge=0, description="weight of the doubly stochastic regulariser")
    average: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of weights; 0: none")
    clip: float = Field(5.0, gt=0, description="largest gradient norm; larger gradients are scaled down")
    patience: Count = Field(5, description="epochs without improvement before training stops")
    monitor: str = Field(
        "CIDEr",
        description="measure that selects best.pth: loss, perplexity, top5, BLEU-4 or another metric",
    )
    beam: Few = Field(1, description="beam width of the captions scored after each epoch")
    accumulate: Few = Field(
        1, description="parts of a batch whose gradients are computed one after the other, to save memory"
    )
    log_every: Count = Field(20, description="steps between rows of loss_log.txt")
    checkpoint_every: Count = Field(500, description="steps between checkpoints within an epoch")
    init_from: UserPath | None = Field(None, description="checkpoint of the model to start from")


class RLConfig(Section):
    cider: float = Field(1.0, ge=0, description="weight of CIDEr-D (0 to 10) in the reward")
    bleu: float = Field(0.0, ge=0, description="weight of sentence BLEU-4 (0 to 1) in the reward")
    samples: Few = Field(5, description="captions sampled per image in each step")
    temperature: float = Field(1.0, gt=0, description="sampling temperature; below 1 favours likely words")
    baseline: Literal["greedy", "leave_one_out"] = Field(
        "leave_one_out", description="self_critical: reward of the greedy caption, or mean of other samples"
    )
    batch_mean: bool = Field(True, description="actor_critic: subtract the mean reward of the batch")
    reward_clip: float = Field(5.0, ge=0, description="actor_critic: largest absolute reward; 0: no limit")
    gamma: float = Field(1.0, gt=0, le=1, description="actor_critic: discount of the reward per word")
    entropy_weight: float = Field(0.01, ge=0, description="actor_critic: weight of the entropy bonus")
    anneal_entropy: bool = Field(True, description="actor_critic: reduce entropy_weight in every epoch")
    value_weight: float = Field(0.5, gt=0, description="actor_critic: weight of the critic's squared error")
    critic_dim: Dim = Field(256, description="actor_critic: size of the critic's hidden layer")
    critic_lr: float = Field(1e-3, gt=0, description="actor_critic: peak learning rate of the critic")


class Config(Section):
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    features: FeaturesConfig = FeaturesConfig()
    decoder: DecoderConfig = DecoderConfig()
    train: TrainConfig = TrainConfig()
    rl: RLConfig = RLConfig()
    search: SearchConfig = SearchConfig()
    phases: dict[str, dict[str, dict[str, Any]]] = Field(
        {}, description="name -> section -> key -> value: what changes in each phase of a training"
    )

    @model_validator(mode="after")
    def consistent(self) -> "Config":
        if self.decoder.embeddings == "one_hot" and self.decoder.tie_embeddings:
            raise ValueError(
                "decoder.embeddings=one_hot has no weights to share with the output layer; set "
                "decoder.tie_embeddings=false"
            )
        decoder = self.decoder
        for name in decoder.divided:
            if (size := getattr(decoder, name)) % decoder.heads:
                raise ValueError(f"decoder.heads={decoder.heads}: it must divide decoder.{name}={size}")
        if self.decoder.freeze_embeddings and not self.decoder.vectors:
            raise ValueError(
                f"decoder.freeze_embeddings: {self.decoder.embeddings} embeddings cannot be frozen; set "
                "decoder.embeddings to a file of vectors, or decoder.freeze_embeddings=false"
            )
        if self.views > 1 and not self.data.augment:
            raise ValueError("features.views: with data.augment=[] all views are equal; set features.views=1")
        return self

    @property
    def caches_features(self) -> bool:
        return self.features.cache and self.encoder.fine_tune == "none"

    @property
    def views(self) -> int:
        """Views per training image: features.views, or 1 if features are not cached."""
        return self.features.views if self.caches_features else 1

    @property
    def run_folder(self) -> Path:
        return self.run.folder / self.run.name

    def as_dict(self) -> dict:
        """The configuration as plain types, for YAML and checkpoints."""
        return self.model_dump(mode="json")
