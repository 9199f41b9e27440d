"""CaptionModel, an encoder with a decoder: build it, put it into a checkpoint, restore it."""

from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model_weights

from config import Config
from files import CHECKPOINT_FORMAT
from models.decoder import Decoder
from models.decoders import DECODERS
from models.encoder import EncoderCNN
from models.search import Captions, SearchOptions, search
from utils import UserError, look_up


class CaptionModel(nn.Module):
    """From images, or their cached grids, to words."""

    def __init__(self, encoder: EncoderCNN, decoder: Decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        # Whether the encoder has unchanged weights of torchvision, which a checkpoint stores only by name.
        self.has_named_encoder = False

    def grid(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) -> grid (N, L, C); a cached grid is only converted to float32."""
        return self.encoder(images) if images.dim() == 4 else images.float()

    def forward(self, images: torch.Tensor, captions: torch.Tensor, image_index: torch.Tensor):
        """Teacher forcing: logits (M, T - 1, V) and alphas (M, T - 1, L) or None."""
        return self.decoder(self.grid(images), captions, image_index)

    def caption(self, images: torch.Tensor, options: SearchOptions) -> Captions:
        """Captions of images or grids; see `search`."""
        return search(self.decoder, self.grid(images), options)


def build_model(config: Config, vocab_size: int, weights: str | None = None) -> CaptionModel:
    """A new model.

    A file of word vectors is not read here: checkpoints contain the vectors, so only a new training reads it.

    Args:
        weights: encoder weights to use instead of those of the configuration.

    Raises:
        UserError: there is no such decoder or encoder stage, or the weights cannot be loaded.
    """
    e, d = config.encoder, config.decoder
    kind = look_up(DECODERS, d.kind, "decoder.kind")
    encoder = EncoderCNN(e, weights)
    decoder = kind(encoder.dim, vocab_size, d)
    decoder.embedding.requires_grad_(not d.freeze_embeddings)
    model = CaptionModel(encoder, decoder)
    is_named = (weights or e.weights) in get_model_weights(e.name).__members__
    model.has_named_encoder = is_named and not encoder.trained
    return model


def pack_model(model: CaptionModel, config: Config, words: list[str], transform: dict) -> dict:
    """Everything that captioning needs, as plain types and tensors."""
    state = model.state_dict()
    if model.has_named_encoder:
        state = {key: value for key, value in state.items() if not key.startswith("encoder.")}
    return {
        "format": CHECKPOINT_FORMAT,
        "config": config.as_dict(),
        "vocabulary": words,
        "transform": transform,
        "encoder_digest": model.encoder.digest(),
        "model": state,
    }


def unpack_model(checkpoint: dict, config: Config, path: Path) -> CaptionModel:
    """The model that `pack_model` put into a checkpoint, on the CPU and in evaluation mode.

    Args:
        config: the configuration of the checkpoint, possibly with overrides.
        path: the path of the checkpoint, for messages.

    Raises:
        UserError: the weights do not fit `config`, or the encoder's weights cannot be loaded or are not those
            that the model was trained with.
    """
    state = checkpoint["model"]
    stored = any(key.startswith("encoder.") for key in state)
    # If the checkpoint contains the encoder's weights, they replace random ones; otherwise it has their name.
    model = build_model(config, len(checkpoint["vocabulary"]), weights="none" if stored else None)
    misfit = (
        f"{path}: its weights do not fit its configuration with these overrides; encoder.* and decoder.* are "
        "part of the model and cannot be changed after training"
    )
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError:
        raise UserError(misfit) from None
    missing = [key for key in result.missing_keys if stored or not key.startswith("encoder.")]
    if missing or result.unexpected_keys:
        raise UserError(misfit)
    if model.encoder.digest() != checkpoint["encoder_digest"]:
        raise UserError(
            f"{path}: the encoder's weights {config.encoder.weights} are not those it was trained with; "
            "use the same weights, or train again"
        )
    return model.eval()
