"""The section `search` of the configuration."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from config_types import Few, Section

# One word, or a list of them.
_Words = Annotated[list[str], BeforeValidator(lambda words: [words] if isinstance(words, str) else words)]


class SearchConfig(Section):
    beam: Few = Field(5, description="beam width; 1 is greedy")
    max_length: Few = Field(30, description="longest caption in words")
    length_penalty: float = Field(
        0.7,
        ge=0,
        description="beams are ranked by log-probability / length^penalty; 0 favours short captions",
    )
    temperature: float = Field(0.0, ge=0, description="0: beam search; above 0: sampling temperature")
    top_k: int = Field(0, ge=0, le=10**9, description="sampling: only the k most likely words; 0: all words")
    top_p: float = Field(
        1.0, gt=0, le=1, description="sampling: only the most likely words with this total probability"
    )
    min_length: int = Field(0, ge=0, le=10_000, description="a caption does not end before so many words")
    no_repeat: int = Field(
        0, ge=0, le=10_000, description="no sequence of n words occurs twice in a caption; 0: any may"
    )
    exclude: _Words = Field([], description="words that must not occur: [dog,ball]")
    include: _Words = Field(
        [], max_length=4, description="beam search: words that must occur, up to 4: [dog|puppy,ball]"
    )
    groups: Few = Field(1, description="beam search: groups of beams that avoid each other's words")
    diversity: float = Field(
        0.5, ge=0, description="groups: nats that a word costs for each beam of other groups that chose it"
    )
    rerank: Literal["none", "cider", "neighbours"] = Field(
        "none",
        description="of the beams or samples, the one most like (CIDEr-D) the others: cider; "
        "the captions of similar training images: neighbours",
    )

    @model_validator(mode="after")
    def possible(self) -> "SearchConfig":
        if max(self.min_length, len(self.include)) > self.max_length:
            key = "min_length" if self.min_length > self.max_length else "include"
            raise ValueError(f"search.{key}: a caption of search.max_length={self.max_length} is too short")
        if self.include and self.temperature:
            raise ValueError("search.include: sampling cannot do this; set search.temperature=0")
        if self.include and self.groups > 1:
            raise ValueError("search.include and search.groups cannot be combined; set search.groups=1")
        if self.beam % self.groups:
            raise ValueError(f"search.groups={self.groups}: it must divide search.beam={self.beam}")
        return self
