"""Networks: backbones, projectors, and parts of momentum methods."""
