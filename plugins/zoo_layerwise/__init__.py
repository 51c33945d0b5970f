"""Layer-wise analysis of (partial) adversarial training."""
