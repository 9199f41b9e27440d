"""The decoders, one per file. A new file in this folder needs no entry anywhere else."""

from models.decoder import Decoder
from utils import classes_in

# decoder.kind -> class
DECODERS: dict[str, type[Decoder]] = classes_in(__name__, __path__, Decoder)
