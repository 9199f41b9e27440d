"""The configuration: typed, documented, validated.

The description of each field is printed by `--help` and in error messages. config_reading.py reads it from
YAML files and the command line.
"""

import difflib
from pathlib import Path
from typing import Literal

import torchvision
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torchvision.models import list_models


class Section(BaseModel):
    # Unknown keys are errors (a typo must not train for an hour with a default) and a run may be
    # called 7.
    model_config = ConfigDict(extra="forbid", validate_default=True, coerce_numbers_to_str=True)


class RunConfig(Section):
    name: str = Field("flickr8k", pattern=r"^[\w.+-]+$", description="name of the run, and of its folder")
    folder: Path = Field(Path("runs"), description="folder that holds the run folders")
    seed: int = Field(1, ge=0, lt=2**32, description="seed of weights, order, dropout and augmentation")
    device: str = Field("auto", description="auto (CUDA where there is one), cpu, cuda, cuda:1")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="mixed precision; auto is bfloat16 where the hardware has it"
    )
    deterministic: bool = Field(False, description="choose repeatable CUDA kernels, at some cost in speed")
    tensorboard: bool = Field(False, description="log for TensorBoard, too (needs the package tensorboard)")


class DataConfig(Section):
    captions: list[Path] = Field(
        Path("archive/captions.csv"), min_length=1, description="captions file, or several as [a.json,b.json]"
    )
    images: Path = Field(Path("archive/images"), description="folder that the image names are relative to")
    lists: Path | None = Field(
        None, description="folder of the Flickr_8k.*Images.txt, which split captions that have no splits"
    )
    max_bad_rows: float = Field(
        0.05, ge=0, le=1, description="share of unusable rows that is left out; more is an error"
    )
    min_freq: int = Field(5, ge=1, description="a word rarer than this in the training captions is <unk>")
    max_length: int = Field(40, ge=1, description="words of a caption that training reads; the rest is cut")
    captions_per_image: int = Field(5, ge=1, description="captions drawn per image and epoch, at most")
    augment: list[Literal["crop", "flip", "colour"]] = Field(
        ["crop", "flip"], description="augmentation of images for a trained encoder and for extra views"
    )
    workers: int = Field(2, ge=0, description="processes that read images; 0 reads in the main process")

    @field_validator("captions", mode="before")
    @classmethod
    def one_or_several(cls, captions):
        return captions if isinstance(captions, list) else [captions]


class EncoderConfig(Section):
    name: str = Field("resnet50", description="a torchvision classification model")
    weights: str = Field(
        "IMAGENET1K_V2", description="torchvision weight name, path of a state dict, or none"
    )
    layer: str = Field(
        "last", description="stage whose output is the grid, such as layer3; last for the last"
    )
    grid: int | None = Field(None, ge=1, description="resample the grid to this many cells a side")
    image_size: int | None = Field(None, ge=32, description="pixels a side; empty for the weights' own")
    fine_tune: str = Field("none", description="none (frozen), all, or the stage to train from, as layer4")

    @field_validator("name")
    @classmethod
    def is_known(cls, name: str) -> str:
        models = list_models(module=torchvision.models)
        if name in models:
            return name
        near = difflib.get_close_matches(name, models, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; resnet50 is one"
        raise ValueError(f"torchvision has no such classification model{hint}")


class FeaturesConfig(Section):
    cache: bool = Field(True, description="compute a frozen encoder's features once and keep them on disk")
    folder: Path = Field(Path("cache/features"), description="folder of the kept features")
    views: int = Field(1, ge=1, description="views per training image: the plain one and augmented ones")


class DecoderConfig(Section):
    kind: str = Field("attention", description="attention, or lstm without attention")
    embeddings: str = Field(
        "learned", min_length=1, description="learned, one_hot, or the path of a GloVe or word2vec text file"
    )
    freeze_embeddings: bool = Field(False, description="keep the embeddings as they are in that file")
    embed_dim: int = Field(512, ge=1, description="size of a word's embedding (one_hot: the vocabulary's)")
    hidden_dim: int = Field(512, ge=1, description="size of the LSTM's state")
    attention_dim: int = Field(512, ge=1, description="size of the space in which attention compares")
    layers: int = Field(1, ge=1, le=8, description="LSTM layers (the attention decoder has one)")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout on features, embeddings and output")
    word_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the words that the decoder does not hear in training"
    )
    tie_embeddings: bool = Field(True, description="score words with their embeddings' own weights")

    @property
    def vectors(self) -> Path | None:
        """The file that the embeddings start from, where there is one."""
        return None if self.embeddings in ("learned", "one_hot") else Path(self.embeddings)


class TrainConfig(Section):
    objective: str = Field(
        "cross_entropy",
        description="what a step minimises: cross_entropy, self_critical or actor_critic",
    )
    epochs: int = Field(15, ge=1, description="passes over the training images")
    batch_size: int = Field(32, ge=1, description="images a batch (each with captions_per_image captions)")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of the decoder")
    encoder_lr: float = Field(1e-4, gt=0, description="peak learning rate of a trained encoder")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")
    schedule: Literal["cosine", "plateau", "constant"] = Field(
        "cosine", description="learning rate after warm-up; plateau halves it when the monitor stands still"
    )
    warmup: float = Field(0.5, ge=0, description="epochs over which the learning rate rises to its peak")
    plateau_patience: int = Field(2, ge=0, description="epochs without a better monitor before it is halved")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of probability spread over all words")
    scheduled_sampling: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="cross_entropy: share of its own words that the decoder reads in the last epoch",
    )
    attention_weight: float = Field(1.0, ge=0, description="weight of the doubly stochastic regulariser")
    average: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of weights; 0 is off")
    clip: float = Field(5.0, gt=0, description="largest norm of the gradient")
    patience: int = Field(5, ge=1, description="epochs without a better monitor before training stops")
    monitor: str = Field(
        "CIDEr",
        description="which epoch becomes best.pth: by loss, perplexity, top5, BLEU-4 or another metric",
    )
    beam: int = Field(1, ge=1, description="beam width of the captions scored after each epoch")
    log_every: int = Field(20, ge=1, description="steps between rows of loss_log.txt")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints within an epoch")
    init_from: Path | None = Field(None, description="checkpoint whose weights and vocabulary to start from")


class RLConfig(Section):
    cider: float = Field(1.0, ge=0, description="weight of CIDEr-D, between 0 and 10, in the reward")
    bleu: float = Field(0.0, ge=0, description="weight of sentence BLEU-4, between 0 and 1, in the reward")
    samples: int = Field(5, ge=1, description="captions sampled per image and step")
    temperature: float = Field(1.0, gt=0, description="of the sampling; below 1 it keeps to likelier words")
    baseline: Literal["greedy", "leave_one_out"] = Field(
        "leave_one_out", description="self_critical: the greedy caption's reward, or the other samples' mean"
    )
    batch_mean: bool = Field(True, description="actor_critic: take the batch's mean off the rewards")
    reward_clip: float = Field(5.0, ge=0, description="actor_critic: largest reward either way; 0 for any")
    gamma: float = Field(1.0, gt=0, le=1, description="actor_critic: discount per word of the reward to come")
    entropy_weight: float = Field(0.01, ge=0, description="actor_critic: weight of the entropy bonus")
    anneal_entropy: bool = Field(True, description="actor_critic: let that weight fall from epoch to epoch")
    value_weight: float = Field(0.5, gt=0, description="actor_critic: weight of the critic's squared error")
    critic_dim: int = Field(256, ge=1, description="actor_critic: size of the critic's hidden layer")
    critic_lr: float = Field(1e-3, gt=0, description="actor_critic: peak learning rate of the critic")


class SearchConfig(Section):
    beam: int = Field(5, ge=1, description="beam width; 1 is greedy")
    max_length: int = Field(30, ge=1, description="longest caption in words")
    length_penalty: float = Field(
        0.7, ge=0, description="beams are ranked by log-probability / length^this; 0 prefers short captions"
    )
    temperature: float = Field(0.0, ge=0, description="0 searches with the beam, above 0 samples instead")
    top_k: int = Field(0, ge=0, description="sampling: only the k likeliest words; 0 for all")
    top_p: float = Field(1.0, gt=0, le=1, description="sampling: only the likeliest words of this total")


class Config(Section):
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    features: FeaturesConfig = FeaturesConfig()
    decoder: DecoderConfig = DecoderConfig()
    train: TrainConfig = TrainConfig()
    rl: RLConfig = RLConfig()
    search: SearchConfig = SearchConfig()

    @model_validator(mode="after")
    def consistent(self) -> "Config":
        if self.decoder.embeddings == "one_hot" and self.decoder.tie_embeddings:
            raise ValueError(
                "decoder.embeddings=one_hot has no weights that could score words; set "
                "decoder.tie_embeddings=false"
            )
        if self.decoder.freeze_embeddings and not self.decoder.vectors:
            raise ValueError(
                f"decoder.freeze_embeddings: {self.decoder.embeddings} embeddings have nothing to keep; set "
                "decoder.embeddings to a file of vectors, or decoder.freeze_embeddings=false"
            )
        if self.views > 1 and not self.data.augment:
            raise ValueError("features.views: more than one view needs data.augment to make them differ")
        return self

    @property
    def caches_features(self) -> bool:
        return self.features.cache and self.encoder.fine_tune == "none"

    @property
    def views(self) -> int:
        """Views per training image: features.views, but 1 where no features are cached."""
        return self.features.views if self.caches_features else 1

    @property
    def run_folder(self) -> Path:
        return self.run.folder / self.run.name

    def as_dict(self) -> dict:
        """Plain types only, as YAML and a checkpoint take them."""
        return self.model_dump(mode="json")
