"""EncoderCNN: a torchvision classification model without its classifier, as a grid of features."""

import hashlib
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from utils import UserError


class EncoderCNN(nn.Module):
    """images (N, 3, H, W) -> grid (N, L, C), L cells row by row.

    The backbone is torchvision's own module tree, cut after the last stage that is needed, so its state dict
    has torchvision's names. Frozen stages stay in evaluation mode: their batch-norm statistics do not move.
    """

    def __init__(
        self, name: str, weights: str, layer: str = "last", grid: int | None = None, fine_tune: str = "none"
    ):
        """
        Args:
            name: a torchvision classification model, such as resnet50.
            weights: a torchvision weight name (IMAGENET1K_V2, DEFAULT), the path of a state dict, or `none`.
            layer: the stage whose output is the grid, or `last`.
            grid: resample the grid to this many cells a side (adaptive average).
            fine_tune: `none`, `all`, or the first stage that is trained.

        Raises:
            UserError: no such model, stage or weights; the weights are of another model or cannot be had.
        """
        super().__init__()
        try:
            self.backbone = torchvision.models.get_model(name, weights=None)
        except ValueError:
            raise UserError(f"encoder.name={name}: torchvision has no such model; resnet50 is one") from None
        stages = keep_stages(self.backbone)
        for wanted in (layer, fine_tune):
            stages = open_up(self.backbone, stages, wanted)
        self.stages = stages[: find_stage(stages, layer, "encoder.layer") + 1 if layer != "last" else None]
        for stage in stages[len(self.stages) :]:
            drop(self.backbone, stage)
        load_weights(self.backbone, name, weights)
        self.grid = grid
        self.frozen_stages, self.trained_stages = split_stages(self.stages, fine_tune)
        for stage in self.frozen_stages:
            self.backbone.get_submodule(stage).requires_grad_(False)
        self.train()
        self.dim = self.measure(name)

    def measure(self, name: str) -> int:
        """C, found by looking at a blank picture."""
        training = self.training
        try:
            with torch.no_grad():
                return self.eval()(torch.zeros(1, 3, 64, 64)).shape[2]
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError):
            raise UserError(
                f"encoder.name={name}: the stages of this model do not give a grid one after the other; "
                "use a ResNet, MobileNet, EfficientNet, ConvNeXt, RegNet or VGG"
            ) from None
        finally:
            self.train(training)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            for stage in self.frozen_stages:
                x = self.backbone.get_submodule(stage)(x)
        for stage in self.trained_stages:
            x = self.backbone.get_submodule(stage)(x)
        if self.grid:
            x = F.adaptive_avg_pool2d(x, self.grid)
        return x.flatten(2).transpose(1, 2)

    def train(self, mode: bool = True) -> "EncoderCNN":
        super().train(mode)
        for stage in self.frozen_stages:
            self.backbone.get_submodule(stage).eval()
        return self

    def digest(self) -> str:
        """SHA-256 over the backbone's weights: the same for the same features."""
        sha = hashlib.sha256()
        for key, value in self.backbone.state_dict().items():
            sha.update(key.encode())
            sha.update(value.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


def keep_stages(model: nn.Module) -> list[str]:
    """Cut the classifier off and return the names of what remains, in the order it runs.

    torchvision's convolutional models either keep everything before the pooling in `features`, or list their
    stages as children up to the pooling, as ResNet does.
    """
    if hasattr(model, "features"):
        stages = [f"features.{name}" for name, _ in model.features.named_children()]
        others = [name for name, _ in model.named_children() if name != "features"]
    else:
        names = [name for name, _ in model.named_children()]
        pooled = [isinstance(child, nn.AdaptiveAvgPool2d) for child in model.children()]
        end = pooled.index(True) if True in pooled else len(names)
        stages, others = names[:end], names[end:]
    for name in others:
        delattr(model, name)
    return stages


def open_up(model: nn.Module, stages: list[str], wanted: str) -> list[str]:
    """Replace the stage that `wanted` is a part of by its parts: layer4 by layer4.0 and layer4.1, say."""
    for i, stage in enumerate(stages):
        module = model.get_submodule(stage)
        if wanted.startswith(f"{stage}.") and isinstance(module, nn.Sequential):
            parts = [f"{stage}.{name}" for name, _ in module.named_children()]
            return open_up(model, [*stages[:i], *parts, *stages[i + 1 :]], wanted)
    return stages


def drop(model: nn.Module, path: str) -> None:
    parent, _, name = path.rpartition(".")
    delattr(model.get_submodule(parent), name)


def find_stage(stages: list[str], stage: str, key: str) -> int:
    if stage not in stages:
        raise UserError(f"{key}={stage}: the encoder has no such stage; it has {', '.join(stages)}")
    return stages.index(stage)


def split_stages(stages: list[str], fine_tune: str) -> tuple[list[str], list[str]]:
    """The frozen stages and the trained ones, which are the last ones."""
    named = {"none": len(stages), "all": 0}
    first = named[fine_tune] if fine_tune in named else find_stage(stages, fine_tune, "encoder.fine_tune")
    return stages[:first], stages[first:]


def load_weights(backbone: nn.Module, name: str, weights: str) -> None:
    """Fill the backbone from a torchvision weight name or a file; raises UserError, never falls back."""
    if weights == "none":
        return
    known = torchvision.models.get_model_weights(name).__members__
    if weights in known:
        state = download(name, known[weights])
    elif Path(weights).is_file():
        state = read_state(Path(weights))
    else:
        raise UserError(
            f"encoder.weights={weights}: torchvision has no such weights of {name} ({', '.join(known)} "
            f"and DEFAULT are), and there is no file at {Path(weights).absolute()}"
        )
    # The classifier, and stages after the one in use, are in the file but not here.
    own = backbone.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    other = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or other:
        what = f"{missing[0]} is missing" if missing else f"{other[0]} has another shape"
        raise UserError(
            f"encoder.weights={weights}: not weights of {name} ({what}); set encoder.name to their model"
        )
    backbone.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def download(name: str, entry) -> dict[str, torch.Tensor]:
    """torchvision's weights, from its cache or the network, checked against the hash in their name."""
    try:
        return entry.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"the weights of {name} could not be downloaded ({error}); fetch {entry.url} with any browser, "
            f"put it into {folder}, or anywhere and set encoder.weights to its path"
        ) from None


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a file, out of the wrappings that training scripts put around it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise UserError(
            f"encoder.weights={path}: not a file that torch.load reads with weights_only=True"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"encoder.weights={path}: not a state dict (names with tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}
