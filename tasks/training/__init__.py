"""What stages that train share: the optimizer, weights on disk, the training loop."""
