"""The models of the library timm, by name, as `EncoderCNN` takes them."""

import math
import os
import textwrap
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import NodePathTracer

from compute import is_out_of_memory
from config import EncoderConfig
from data.timm_names import TimmModel, find_timm_model
from models.backbone import Network, wrong_size
from models.weights_file import read_weights, require_undamaged
from utils import UserError


def build(config: EncoderConfig, weights: str, size: int) -> Network:
    """The model for images of `size` pixels a side, with `weights`; it is traced up to its classifier.

    timm itself converts weights, from a file too: those of original publications get its names, and position
    embeddings are resampled to other image sizes.

    Raises:
        UserError: timm is not installed or has no such model or weights; they cannot be downloaded or read,
            or are of another model; the model does not take images of this size.
    """
    found = find_timm_model(config)
    is_named = weights in found.weights
    if weights != "none" and not is_named and not os.path.isfile(weights):
        known = f"it has {', '.join(found.weights)}" if found.weights else "it has none"
        raise UserError(
            f"encoder.weights={weights}: timm has no such weights for {config.name} ({known}), and there is "
            f"no file at {Path(weights).absolute()}"
        )
    # A model with a position embedding for each cell takes images of one size.
    sized = {"img_size": size} if found.config.fixed_input_size else {}
    try:
        if is_named:
            model = found.timm.create_model(found.name, pretrained=True, **sized)
        elif weights == "none":
            model = found.timm.create_model(found.name, **sized)
        else:
            model = _from_file(found, Path(weights), config.name, sized)
    except UserError:
        raise
    except Exception as error:  # timm, its models and the Hugging Face Hub raise anything
        if is_out_of_memory(error):
            raise
        if not is_named:
            raise wrong_size(config, size) from None
        raise UserError(
            f"the weights of {config.name} could not be downloaded or read ({_first_line(error)}); fetch "
            f"{_address(found)} with a browser and set encoder.weights to its path"
        ) from None
    # The same weights by their name, but resampled: another machine may round differently.
    is_resampled = bool(sized) and tuple(found.config.input_size[1:]) != (size, size)
    return Network(
        model,
        _tracer(),
        head=(),
        prefix_tokens=getattr(model, "num_prefix_tokens", 1),
        is_named=is_named and not is_resampled,
    )


def _tracer() -> NodePathTracer:
    """A tracer that goes only as far as the features, and knows what cannot be traced in timm's layers."""
    from timm.models import get_notrace_functions, get_notrace_modules

    tracer = NodePathTracer(
        autowrap_modules=(math, torchvision.ops),
        autowrap_functions=tuple(get_notrace_functions()),
        leaf_modules=get_notrace_modules(),
    )
    tracer.traced_func_name = "forward_features"
    return tracer


def _from_file(found: TimmModel, path: Path, name: str, sized: dict[str, int]) -> nn.Module:
    """The model with the weights in a file, whose classifier may have any number of classes or be missing."""
    state = read_weights(path)
    require_undamaged(state, path)
    own = found.config.num_classes
    classifier = found.config.classifier
    rows = (
        state.get(f"{classifier}.weight", torch.empty(0, 0)).shape[0] if isinstance(classifier, str) else own
    )
    for num_classes in dict.fromkeys((rows, own)):  # the names in a file may be those of a publication
        # With numbers that agree, timm requires that all weights are there.
        overlay = {"state_dict": dict(state), "num_classes": num_classes}
        try:
            return found.timm.create_model(
                found.name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes, **sized
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = _first_line(error)
    found.timm.create_model(found.name, **sized)  # fails if the size is wrong, not the weights
    raise UserError(
        f"encoder.weights={path}: not weights of {name} ({reason}); set encoder.name to their model"
    )


def _first_line(error: Exception) -> str:
    """The start of the message; in that of torch for a state dict, what does not fit."""
    text = str(error).replace("Error(s) in loading state_dict for ", "")
    return textwrap.shorten(text, 160, placeholder=" ...") or type(error).__name__


def _address(found: TimmModel) -> str:
    """Where the weights can be fetched by hand."""
    config = found.config
    if not config.hf_hub_id:
        return config.url
    file = config.hf_hub_filename or "model.safetensors"
    return f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{file}"
