"""CaptionModel: encoder and decoder as one; build it, save it, load it, caption with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model_weights

from config import Config, make_config
from files import CHECKPOINT_FORMAT, load_checkpoint
from models.decoder import AttentionDecoder, LSTMDecoder
from models.encoder import EncoderCNN, input_size
from models.search import Captions, SearchOptions, search
from utils import UserError


class CaptionModel(nn.Module):
    """Images, or their cached grids, in; words out."""

    def __init__(self, encoder: EncoderCNN, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def grid(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) -> grid (N, L, C); what is a grid already (from the cache) stays one."""
        return self.encoder(images) if images.dim() == 4 else images.float()

    def forward(self, images: torch.Tensor, captions: torch.Tensor, image_index: torch.Tensor):
        """Teacher forcing: logits (M, T - 1, V) and alphas (M, T - 1, L) or None."""
        return self.decoder(self.grid(images), captions, image_index)

    def caption(self, images: torch.Tensor, options: SearchOptions) -> Captions:
        """Captions of images or grids, see `search`."""
        return search(self.decoder, self.grid(images), options)


def build_model(config: Config, words: int, weights: str | None = None) -> CaptionModel:
    """A new model for a vocabulary of `words`; `weights` instead of the configuration's, if given.

    A file of word vectors is not read here: only training from the start does that, a checkpoint has them.
    """
    e, d = config.encoder, config.decoder
    size = e.image_size or input_size(e.name, e.weights)
    encoder = EncoderCNN(e.name, weights or e.weights, e.layer, e.grid, e.fine_tune, size)
    last = (d.dropout, d.tie_embeddings, d.embeddings == "one_hot", d.word_dropout)
    if d.kind == "lstm":
        decoder = LSTMDecoder(encoder.dim, words, d.embed_dim, d.hidden_dim, d.layers, *last)
    else:
        decoder = AttentionDecoder(encoder.dim, words, d.embed_dim, d.hidden_dim, d.attention_dim, *last)
    decoder.embedding.requires_grad_(not d.freeze_embeddings)
    return CaptionModel(encoder, decoder)


def stores_encoder(config: Config) -> bool:
    """Whether a checkpoint holds the encoder: not if it is frozen and torchvision gives it back by name."""
    downloadable = config.encoder.weights in get_model_weights(config.encoder.name).__members__
    return not (config.encoder.fine_tune == "none" and downloadable)


def pack_model(model: CaptionModel, config: Config, words: list[str], transform: dict) -> dict:
    """All that captioning needs, as plain types and tensors."""
    state = model.state_dict()
    if not stores_encoder(config):
        state = {key: value for key, value in state.items() if not key.startswith("encoder.")}
    return {
        "format": CHECKPOINT_FORMAT,
        "config": config.as_dict(),
        "vocabulary": words,
        "transform": transform,
        "encoder_digest": model.encoder.digest(),
        "model": state,
    }


@dataclass
class LoadedModel:
    """What a checkpoint holds, ready to use."""

    model: CaptionModel
    config: Config
    words: list[str]
    transform: dict


def load_model(path: Path, overrides: Sequence[str] = ()) -> LoadedModel:
    """The model of a checkpoint, in evaluation mode on the CPU, with overrides applied to its configuration.

    Raises:
        UserError: no checkpoint at `path`, or the encoder's weights cannot be had or are not those it was
            trained with.
    """
    return unpack_model(load_checkpoint(path), path, overrides)


def unpack_model(checkpoint: dict, path: Path, overrides: Sequence[str] = ()) -> LoadedModel:
    config = make_config(checkpoint["config"], overrides, str(path))
    stored = any(key.startswith("encoder.") for key in checkpoint["model"])
    # Random weights that the checkpoint's own replace at once, or those by name, which it names only.
    model = build_model(config, len(checkpoint["vocabulary"]), weights="none" if stored else None)
    try:
        result = model.load_state_dict(checkpoint["model"], strict=False)
    except RuntimeError:
        raise UserError(
            f"{path}: its weights do not fit its configuration with these overrides; encoder.* and decoder.* "
            "are part of the model and cannot be changed after training"
        ) from None
    if [
        key for key in result.missing_keys if stored or not key.startswith("encoder.")
    ] or result.unexpected_keys:
        raise UserError(f"{path}: its weights do not fit its configuration with these overrides")
    if model.encoder.digest() != checkpoint["encoder_digest"]:
        raise UserError(
            f"{path}: the encoder's weights {config.encoder.weights} are not those it was trained with; "
            "fetch the same weights, or train anew"
        )
    return LoadedModel(model.eval(), config, checkpoint["vocabulary"], checkpoint["transform"])
