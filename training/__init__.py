"""Training: the objectives, one training step, the learning rate, and runs that can be resumed."""
