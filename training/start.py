"""The start of a training: from a new model, from a stopped run, or from the model of another run."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from captioning import Captioner
from compute import Compute
from config import Config
from config_reading import make_config
from data.shard_paths import is_sharded, require_all_captions
from data.shard_set import open_shards
from data.transforms import transform_for
from data.vocab import find_vocabulary
from metrics.measures import find_monitor
from models.checkpoint import Checkpoint, load_checkpoint
from models.decoders import DECODERS
from models.embedding import WordEmbedding
from models.encoder import EncoderCNN
from models.memory import require_training_memory
from models.model import build_model
from training.objectives import OBJECTIVES
from training.phases import phase_configs
from training.tensorboard import require_tensorboard
from utils import UserError, look_up

# Keys that may differ from the model of train.init_from: they change how it is trained, not its structure.
_CHANGEABLE = ("encoder.fine_tune", "decoder.dropout", "decoder.word_dropout", "decoder.freeze_embeddings")


def check(config: Config) -> None:
    """Raise UserError for settings that would fail later, after steps that take time."""
    look_up(DECODERS, config.decoder.name, "decoder.kind")
    for phase in phase_configs(config):
        look_up(OBJECTIVES, phase.train.objective, "train.objective").check(phase)
    transform_for(config.encoder)
    find_monitor(config.train.monitor)
    if config.run.tensorboard:
        require_tensorboard()
    if config.search.rerank == "neighbours":
        require_all_captions(config.data, "search.rerank=neighbours", ", or use search.rerank=none")


def with_model_of(config: Config, path: Path) -> tuple[Config, Checkpoint]:
    """The configuration with the encoder and decoder of the checkpoint at `path`, and that checkpoint.

    Raises:
        UserError: there is no such checkpoint, or `config` contradicts it.
    """
    checkpoint = load_checkpoint(path)
    values, source = config.as_dict(), checkpoint.config.as_dict()
    # An empty image_size means the size of the weights, so sizes are compared and not what was written.
    asked = checkpoint.config.encoder.model_copy(update={"image_size": config.encoder.image_size})
    values["encoder"]["image_size"] = transform_for(asked).size
    source["encoder"]["image_size"] = checkpoint.transform.size
    for section in ("encoder", "decoder"):
        theirs = source[section]
        for name in getattr(config, section).model_fields_set:
            key, value = f"{section}.{name}", values[section][name]
            if value != theirs[name] and key not in _CHANGEABLE:
                raise UserError(
                    f"{key}={value} contradicts train.init_from={path}, which has {theirs[name]}; remove "
                    f"{key}: the model comes from there"
                )
            theirs[name] = value
        values[section] = theirs
    return make_config(values), replace(checkpoint, training=None)  # not the state of that run


def make_captioner(
    config: Config, checkpoint: Checkpoint | None, table: pd.DataFrame, compute: Compute
) -> Captioner:
    """The model of `checkpoint`, or a new one for the training captions in `table`; prints its main facts."""
    if checkpoint:
        # The neighbours are those of the encoder as it was.
        captioner = Captioner.from_checkpoint(replace(checkpoint, neighbours=None), config, compute)
    else:
        captioner = _new_captioner(config, table, compute)
    sizes = tuple(table.loc[table["split"] == split, "image"].nunique() for split in ("train", "val"))
    if is_sharded(config.data):
        sizes = len(open_shards(config.data, ["train"])), sizes[1]
    _share_statistics(captioner.model.encoder, compute)
    require_training_memory(captioner.model, config, sizes, len(captioner.vocabulary), compute)
    _describe(captioner)
    return captioner


def _new_captioner(config: Config, table: pd.DataFrame, compute: Compute) -> Captioner:
    vocabulary = find_vocabulary(config.data, table)
    encoder = config.encoder
    transform = transform_for(encoder)
    model = build_model(config, len(vocabulary))
    if vectors := config.decoder.vectors:
        assert isinstance(model.decoder.embedding, WordEmbedding)
        found = model.decoder.embedding.start_from(vectors, vocabulary.words)
        print(f"embeddings: {found:,} of {len(vocabulary):,} words start from {vectors}")
    if encoder.weights == "none" and encoder.fine_tune == "none":
        print(
            "warning: encoder.weights=none with encoder.fine_tune=none: the encoder is random and never "
            "trained; set encoder.weights, or train it with encoder.fine_tune=all"
        )
    return Captioner(model.to(compute.device), vocabulary, transform, config, compute)


def _share_statistics(encoder: EncoderCNN, compute: Compute) -> None:
    """Batch norms that learn their statistics learn them from the images of all processes."""
    if compute.world_size == 1 or not encoder.trained or encoder.has_fixed_statistics:
        return
    if compute.is_cpu:
        raise UserError(
            "encoder.weights=none: batch norms learn their statistics from the images of all processes only "
            "on GPUs; set encoder.weights or encoder.fine_tune=none, or start one process"
        )
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(encoder)


def _describe(captioner: Captioner) -> None:
    config, compute = captioner.config, captioner.compute
    parameters = list(captioner.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trained
    print(
        f"{config.run.name}: {config.encoder.name} + {config.decoder.kind} decoder, "
        f"{len(captioner.vocabulary):,} words, {trained / 1e6:.1f} M parameters trained, "
        f"{frozen / 1e6:.1f} M frozen, {str(compute.precision).removeprefix('torch.')} on {compute.device}"
    )
    if config.views < config.features.views:
        print(
            f"features.views={config.features.views} is ignored: features are not cached, so every image is "
            "augmented anew in every epoch (data.augment)"
        )
