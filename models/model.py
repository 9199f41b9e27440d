"""CaptionModel, an encoder with a decoder: build it, put it into a checkpoint, restore it."""

from collections.abc import Sequence

import torch
from torch import nn

from compute import explain_memory, require_memory
from config import Config
from data.packing import PackedCaptions
from models.checkpoint import CHECKPOINT_FORMAT, Checkpoint
from models.decoder import Decoder
from models.decoders import DECODERS
from models.encoder import EncoderCNN
from models.ensemble import Ensemble
from models.neighbours import Neighbours
from models.search import Captions, SearchOptions, search
from models.tensors import misfit
from utils import UserError, look_up

_explain_memory = explain_memory("lower decoder.hidden_dim or encoder.image_size, or take a smaller encoder")


class CaptionModel(nn.Module):
    """From images, or their cached grids, to words."""

    def __init__(self, encoder: EncoderCNN, decoder: Decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def grid(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) -> grid (N, L, C); a cached grid is only converted to float32."""
        return self.encoder(images) if images.dim() == 4 else images.float()

    def forward(self, images: torch.Tensor, captions: PackedCaptions):
        """Teacher forcing: logits (P, V) and alphas (P, L) or None."""
        return self.decoder(self.grid(images), captions)


def caption(
    models: Sequence[CaptionModel],
    grids: Sequence[torch.Tensor],
    options: SearchOptions,
    indices: Sequence[int] | None = None,
) -> Captions:
    """The captions of one model, or of several with averaged probabilities; each with its own grids."""
    if len(models) == 1:
        return search(models[0].decoder, grids[0], options, indices)
    return search(Ensemble([model.decoder for model in models]), grids, options, indices)


@_explain_memory
def build_model(config: Config, vocab_size: int, weights: str | None = None) -> CaptionModel:
    """A new model.

    A file of word vectors is not read here: checkpoints contain the vectors, so only a new training reads it.

    Args:
        weights: encoder weights to use instead of those of the configuration.

    Raises:
        UserError: there is no such decoder or encoder stage, the weights cannot be loaded, or the memory does
            not suffice.
    """
    encoder = EncoderCNN(config.encoder, weights)
    name = max(("embed_dim", "hidden_dim", "attention_dim"), key=lambda name: getattr(config.decoder, name))
    advice = f"lower decoder.{name}, or raise data.min_freq for fewer words"
    with explain_memory(advice):  # more than 2^63 bytes
        outline = _outline(config, encoder.dim, vocab_size)
    size = sum(p.nbytes for p in outline.parameters())
    require_memory(size, f"decoder.{name}={getattr(config.decoder, name)} with {vocab_size:,} words", advice)
    return CaptionModel(encoder, _build_decoder(config, encoder.dim, vocab_size))


def _outline(config: Config, grid_dim: int, vocab_size: int) -> Decoder:
    """The decoder on torch's meta device: names and shapes of its weights, without memory for them."""
    with torch.device("meta"):
        return _build_decoder(config, grid_dim, vocab_size)


def _build_decoder(config: Config, grid_dim: int, vocab_size: int) -> Decoder:
    decoder = look_up(DECODERS, config.decoder.name, "decoder.kind")(grid_dim, vocab_size, config.decoder)
    decoder.embedding.requires_grad_(not config.decoder.freeze_embeddings)
    return decoder


def pack_model(
    model: CaptionModel,
    config: Config,
    words: list[str],
    transform: dict,
    neighbours: Neighbours | None = None,
) -> dict:
    """Everything that captioning needs, as plain types and tensors.

    The encoder is left out if its weights are those that its library gives back by their name.
    """
    digest, state = model.encoder.digest(), model.state_dict()
    if digest == model.encoder.named_digest:
        state = {key: value for key, value in state.items() if not key.startswith("encoder.")}
    return {
        "format": CHECKPOINT_FORMAT,
        "config": config.as_dict(),
        "vocabulary": words,
        "transform": transform,
        "encoder_digest": digest,
        "model": state,
        **({"neighbours": neighbours.as_dict()} if neighbours else {}),
    }


def unpack_model(checkpoint: Checkpoint, config: Config) -> CaptionModel:
    """The model that `pack_model` put into a checkpoint, on the CPU and in evaluation mode.

    Args:
        config: the configuration of the checkpoint, possibly with overrides.

    Raises:
        UserError: the weights do not fit `config`, the encoder's weights cannot be loaded or are not those
            that the model was trained with, or the memory does not suffice.
    """
    try:
        return _unpack(checkpoint, config)
    except UserError as error:
        raise UserError(f"{checkpoint.path}: {error}") from None


@_explain_memory
def _unpack(checkpoint: Checkpoint, config: Config) -> CaptionModel:
    state, vocab_size, trained_size = checkpoint.model, len(checkpoint.vocabulary), checkpoint.transform.size
    if config.encoder.image_size not in (None, trained_size):
        raise UserError(
            f"encoder.image_size={config.encoder.image_size}: the model was trained with images of "
            f"{trained_size} pixels; leave it out, or train a new model"
        )
    # If the checkpoint contains the encoder's weights, they replace random ones; otherwise it has their name.
    stored = any(key.startswith("encoder.") for key in state)
    encoder = EncoderCNN(config.encoder, "none" if stored else None)
    # The shapes are compared before the decoder takes any memory.
    expected = _outline(config, encoder.dim, vocab_size).state_dict(prefix="decoder.")
    if stored:
        expected |= encoder.state_dict(prefix="encoder.")
    if reason := misfit(state, expected):
        raise UserError(
            f"its weights do not fit its configuration with these overrides ({reason}); encoder.* and "
            "decoder.* are part of the model and cannot be changed after training"
        )
    model = CaptionModel(encoder, _build_decoder(config, encoder.dim, vocab_size))
    model.load_state_dict(state, strict=False)  # not strict: the encoder may be missing
    if encoder.digest() != checkpoint.encoder_digest:
        raise UserError(
            f"the encoder's weights {config.encoder.weights} are not those it was trained with; use the same "
            "weights, or train again"
        )
    return model.eval()
