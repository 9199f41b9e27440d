"""What the scripts of the same names do once their arguments are read; these import torch."""
