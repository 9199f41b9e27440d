"""The settings that may change when a run is resumed; `train.py --help` lists them."""

# Keys that may change take effect from the next step on. All others belong to the model or the data, or
# decide what the measures of earlier epochs, and so the best one, mean.
LEARNING = (  # how the model learns: train.patience counts anew
    *("data.captions_per_image", "data.augment", "encoder.fine_tune", "features.views"),
    *("decoder.dropout", "decoder.word_dropout"),
    *("train.epochs", "train.lr", "train.encoder_lr", "train.weight_decay", "train.schedule", "train.warmup"),
    *("train.plateau_patience", "train.average", "train.clip", "train.label_smoothing"),
    *("train.scheduled_sampling", "train.attention_weight", "rl.critic_lr", "rl.entropy_weight"),
)
CHANGEABLE = (
    *LEARNING,
    *("train.patience", "train.log_every", "train.checkpoint_every"),
    *("run.device", "run.precision", "run.threads", "run.deterministic", "run.tensorboard"),
    *("data.captions", "data.images", "data.lists", "data.max_bad_rows"),  # the captions must be the same
    *("data.workers", "data.index_folder", "features.cache", "features.folder"),
    *("search.beam", "search.temperature", "search.top_k", "search.top_p", "search.groups"),
    *("search.diversity", "search.rerank"),
)
