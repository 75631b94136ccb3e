"""Read-outs: features or a frozen backbone in, accuracies out."""
