"""What training and search take of memory at least: refused before it is tried.

All estimates are lower bounds, so that nothing is refused that would fit.
"""

import torch

from compute import Compute, require_memory
from config import Config
from data.transforms import transform_for
from models.model import CaptionModel

_FLOAT = 4  # bytes


def require_search_memory(
    num_images: int, beam: int, vocab_size: int, device: torch.device, key: str = "search.beam"
) -> None:
    """Raise a UserError if `device` cannot search captions of so many images at once with this beam.

    A step holds a log-probability, a sum and a score for each image, beam and word.
    """
    size = 3 * _FLOAT * num_images * beam * vocab_size
    require_memory(size, f"{key}={beam} for {num_images} images at once", "lower it", device)


def require_training_memory(
    model: CaptionModel, config: Config, split_sizes: tuple[int, int], vocab_size: int, compute: Compute
) -> None:
    """Raise a UserError if the device cannot train `model`.

    Args:
        split_sizes: images for training and for validation.
    """
    # Adam keeps two averages beside the weights and their gradients.
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    advice = "lower decoder.hidden_dim, or train less of the encoder (encoder.fine_tune)"
    require_memory(4 * trained, "training the model's weights", advice, compute.device)

    num_train, num_val = (min(config.train.batch_size, size) for size in split_sizes)
    num_train = -(-num_train // compute.world_size)
    encoder = model.encoder
    if config.caches_features:
        per_image = _FLOAT * encoder.num_cells * encoder.dim
    else:  # the images, and a copy with the channels last
        per_image = 2 * _FLOAT * 3 * transform_for(config.encoder).size ** 2
    require_memory(
        num_train * per_image, f"train.batch_size={config.train.batch_size}", "lower it", compute.device
    )
    # A caption has one word or more: its logits and their gradient.
    per_image = 2 * _FLOAT * vocab_size
    if config.train.objective == "cross_entropy":
        require_memory(
            num_train * per_image, f"train.batch_size={config.train.batch_size}", "lower it", compute.device
        )
    else:
        require_memory(
            num_train * config.rl.samples * per_image,
            f"rl.samples={config.rl.samples} for {num_train} images at once",
            "lower it, or train.batch_size",
            compute.device,
        )
    # The search after each epoch, and that at the end.
    for key, beam in (("train.beam", config.train.beam), ("search.beam", config.search.beam)):
        require_search_memory(num_val, beam, vocab_size, compute.device, key)
