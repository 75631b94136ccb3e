"""Probes: from features or a frozen backbone to predictions."""
