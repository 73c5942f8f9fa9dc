"""Whole files on local disks and object stores: the face of this room for the others."""

from orchestrator.results.files import addresses, retries
from orchestrator.results.files.exclusive import NOT_EXCLUSIVE
from orchestrator.results.files.whole import Files
from trainers.patience import Patience

__all__ = ["NOT_EXCLUSIVE", "Files", "Patience", "addresses", "retries"]
