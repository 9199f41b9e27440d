"""Training: what a step optimises, when the learning rate moves, what a resume needs."""
