"""What search.rerank=neighbours compares captions with, from a trained model and its training images."""

from copy import copy

import torch

from captioning import Captioner
from data.dataset import Flickr8kDataset
from models.neighbours import Neighbours
from training.validation import shared_batches


@torch.inference_mode()
def find_neighbours(captioner: Captioner, train_set: Flickr8kDataset) -> Neighbours:
    """The images of the training split as the model sees them, without augmentation, and their captions."""
    compute, model = captioner.compute, captioner.model.eval()
    images = copy(train_set)
    images.augment = []
    own: dict[int, torch.Tensor] = {}
    for indices, [batch] in shared_batches(captioner, [images], "neighbours"):
        [pixels] = compute.to_device(batch.images)
        with compute.autocast():
            cells = model.grid(pixels).float().mean(dim=1)
        own |= zip(indices, cells.cpu(), strict=True)
    found = {i: cell for part in compute.gather(own) for i, cell in part.items()}
    cells = torch.stack([found[i] for i in range(len(images))])
    return Neighbours.of(cells.clone(), *train_set.all_captions())
