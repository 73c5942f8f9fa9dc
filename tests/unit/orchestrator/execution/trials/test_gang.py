"""What ended a trial of several workers: itself, or the loss of one."""

import pytest
from ray.exceptions import ActorDiedError, RayActorError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from orchestrator.errors import StorageError
from orchestrator.execution.trials.gang import _own_error, backend

MINE = UserExceptionWithTraceback(RuntimeError("the cup was poisoned"), "Traceback …")
COLLATERAL = UserExceptionWithTraceback(RuntimeError("Connection closed by peer"), "Traceback …")


@pytest.mark.parametrize(
    ("failures", "own"),
    [
        ([MINE], "RuntimeError: the cup was poisoned"),
        ([MINE, COLLATERAL], "RuntimeError: the cup was poisoned"),
        ([RayActorError()], None),
        ([COLLATERAL, ActorDiedError()], None),
        ([UserExceptionWithTraceback(StorageError("full"), "Traceback …")], None),
        ([], None),
    ],
)
def test_losses_are_told_from_errors(failures: list[Exception], own: str | None) -> None:
    assert _own_error(failures) == own


@pytest.mark.parametrize(("gpus", "found"), [(None, None), (0.5, "gloo"), (1.0, None), (2.0, None)])
def test_workers_that_may_share_a_gpu_do_not_talk_by_nccl(gpus: float | None, found: str | None) -> None:
    """It refuses two ranks on one GPU."""
    assert backend({"CPU": 1.0} if gpus is None else {"CPU": 1.0, "GPU": gpus}) == found
