"""Which device a process computes on. It follows the resources: what a machine shows beside them is not ours."""

import os

CPU = "cpu"


def assigned() -> str:
    """Return the device of this task or actor of Ray, in torch's words: of the first GPU it was given, else the CPU.

    Ray hides GPUs from a process that was given others, not from one that was given none. The workers of a Train job
    see all GPUs that the job has on their node.

    Raises:
        ValueError: the process cannot see what it was given.
    """
    import ray

    given = [str(number) for number in ray.get_gpu_ids()]
    if not given:
        return CPU
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return f"cuda:{min(int(number) for number in given)}"
    shown = [number.strip() for number in visible.split(",")]
    if hidden := [number for number in given if number not in shown]:
        raise ValueError(
            f"Ray gave this process GPU {', '.join(hidden)}, and CUDA_VISIBLE_DEVICES={visible} hides it; leave the "
            "variable to Ray"
        )
    return f"cuda:{min(shown.index(number) for number in given)}"


def own() -> str:
    """Return the device of a command that runs in the user's own process: a GPU if torch finds one."""
    import torch

    return "cuda" if torch.cuda.is_available() else CPU
