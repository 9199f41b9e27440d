"""torchvision's classification models, by name."""

import inspect
import math
import os
import warnings
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.feature_extraction import NodePathTracer

from compute import is_out_of_memory
from config import EncoderConfig
from models.backbone import Network, wrong_size
from utils import UserError

# What torchvision calls the layers after the grid, in every model that has them as layers.
_HEAD = ("avgpool", "classifier", "fc", "head", "heads")
# Layers that stay whole in the graph, besides those of torch.nn. Sequences of layers, such as the
# Conv2dNormActivation of a MobileNet, are opened, so that their batch norms can be folded.
_LEAVES = [
    layer
    for _, layer in inspect.getmembers(torchvision.ops, inspect.isclass)
    if not issubclass(layer, nn.Sequential)
]


def build(config: EncoderConfig, weights: str, size: int) -> Network:
    """The model for images of `size` pixels a side.

    It has `weights` if that is a name of torchvision's, else random weights.

    Raises:
        UserError: `weights` is neither `none`, a name nor a file; the download fails; the model does not
            take images of this size.
    """
    names = get_model_weights(config.name).__members__
    if weights != "none" and weights not in names and not os.path.isfile(weights):
        raise UserError(
            f"encoder.weights={weights}: torchvision has no such weights for {config.name} (it has "
            f"{', '.join(names)} and DEFAULT), and there is no file at {Path(weights).absolute()}"
        )
    # A vision transformer has a position embedding for each cell, so its images have one size.
    sized = {"image_size": size} if config.name.startswith("vit") else {}
    try:
        with warnings.catch_warnings():  # Inception announces that its initialisation may change
            warnings.simplefilter("ignore", FutureWarning)
            model = get_model(config.name, weights=names.get(weights), progress=True, **sized)
    except (ValueError, AssertionError):
        raise wrong_size(config, size) from None
    except (URLError, OSError, RuntimeError, EOFError, UnpicklingError) as error:  # the file may be damaged
        if weights not in names or is_out_of_memory(error):
            raise
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"the weights of {config.name} could not be downloaded or read ({error}); fetch "
            f"{names[weights].url} with a browser and put the file into {folder}, or set encoder.weights to "
            "its path"
        ) from None
    if hasattr(model, "transform_input"):
        # Inception and GoogLeNet were trained with other means and deviations than their transforms use.
        # The model itself converts them, but torchvision switches that on for its own weights only.
        model.transform_input = True
    tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=_LEAVES)
    is_named = weights in names
    file = None if is_named or weights == "none" else Path(weights)
    return Network(model, tracer, _HEAD, prefix_tokens=1, is_named=is_named, file=file)
