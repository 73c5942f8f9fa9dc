"""Samples of policies with the density ratios of their paths, and what these prove: its face for the floors above."""

from orchestrator.frontier.paths.certificate import Certificate, Certifier, certificate
from orchestrator.frontier.paths.gaps import CertifiedGap, Gaps
from orchestrator.frontier.paths.mixtures import Mixed, Mixtures
from orchestrator.frontier.paths.optimum import OwnPaths
from orchestrator.frontier.paths.sources import PathSamples, Pool
from orchestrator.frontier.paths.table import SampleTable, starts
from orchestrator.frontier.paths.tails import FEWEST, effective

__all__ = [
    "FEWEST",
    "Certificate",
    "CertifiedGap",
    "Certifier",
    "Gaps",
    "Mixed",
    "Mixtures",
    "OwnPaths",
    "PathSamples",
    "Pool",
    "SampleTable",
    "certificate",
    "effective",
    "starts",
]
