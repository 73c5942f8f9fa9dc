"""The one family of exceptions that users meet; the command line turns each into one message and an exit code."""


class CdsweepError(Exception):
    """Base of every error that is reported without a traceback."""

    exit_code = 1


class SpecError(CdsweepError):
    """The spec is wrong: names the file, line, key, value and the allowed choices."""

    exit_code = 2


class UsageError(CdsweepError):
    """The command line asks for something that is not there or does not fit together."""

    exit_code = 2


class PlacementError(CdsweepError):
    """The plan needs more than the cluster has, or could ever have."""

    exit_code = 2


class StorageError(CdsweepError):
    """A storage location cannot be read or written."""

    exit_code = 2


class LeaseLostError(StorageError):
    """Another process drives the sweep: this one must not write any more."""

    exit_code = 1


class ClusterError(CdsweepError):
    """Ray cannot be reached, or was lost."""


class Interrupted(CdsweepError):  # noqa: N818 - named as the state that status shows
    """The run was interrupted and can be resumed."""

    exit_code = 130
