"""The objectives, one per file. A new file in this folder needs no entry anywhere else."""

from training.objective import Objective
from utils import classes_in

# train.objective -> class
OBJECTIVES: dict[str, type[Objective]] = classes_in(__name__, __path__, Objective)
