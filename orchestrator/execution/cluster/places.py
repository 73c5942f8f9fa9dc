"""Places at servers of rewards that all trials of a sweep share, wherever they run: a named actor holds them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainers.config import TrialConfig
from trainers.reward_parameters import SERVED

_NAME = "cdsweep-places"
"""In the namespace of the driver's job, which its tasks and actors are in too."""
_MOST_WAITING = 10_000


@contextmanager
def sharing_places(config: TrialConfig) -> Iterator[None]:
    """Within the block of the driver the trials share places, if any of their rewards is a server's."""
    if not any(reward.kind in SERVED for reward in config.scored):
        yield
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from trainers.rewards.served.places import Places

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(
        num_cpus=0,
        max_concurrency=_MOST_WAITING,
        # One that is lost begins with all places free: for the time of a request there may be more under way.
        max_restarts=-1,
        max_task_retries=-1,
    )(Places)
    held = actor.options(name=_NAME, get_if_exists=True, scheduling_strategy=here).remote()
    try:
        yield
    finally:
        del held  # with it the actor goes


class SweepPlaces:
    """Takes places from a worker, at the driver's actor; where the driver has none nobody needs them."""

    def __init__(self) -> None:
        """Find it at the first request."""
        self._actor: Any = None

    async def take(self, server: str, most: int, seconds: float) -> int | None:
        """See ``trainers.rewards.served.places.Shared``."""
        import ray

        self._actor = self._actor or ray.get_actor(_NAME)
        place: int | None = await self._actor.take.remote(server, most, seconds)
        return place

    async def leave(self, server: str, place: int) -> None:
        """See ``trainers.rewards.served.places.Shared``."""
        await self._actor.leave.remote(server, place)
