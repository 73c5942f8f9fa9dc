"""Statistics of the pretrained model where they are not known exactly."""

from trainers.config import BaselineStatistics, TrialConfig


def sample_baseline(config: TrialConfig) -> BaselineStatistics:
    """Sample the pretrained model and score it; thresholds in σ and relative units refer to the result."""
    from trainers.setup import sampled_baseline

    return sampled_baseline(config)
