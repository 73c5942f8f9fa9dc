"""Places at servers of rewards: never more than there are, in the order of asking, and none is lost for good."""

import asyncio

from trainers.rewards.served.places import Places, placed, sharing


def test_no_more_are_taken_than_there_are_at_each_server() -> None:
    now, most = {"a": 0, "b": 0}, {"a": 0, "b": 0}

    async def request(server: str, limit: int) -> None:
        async with placed(server, limit, 60.0):
            now[server] += 1
            most[server] = max(most[server], now[server])
            await asyncio.sleep(0.005)
            now[server] -= 1

    async def requests() -> None:
        await asyncio.gather(*(request(server, limit) for server, limit in [("a", 3), ("b", 2)] * 10))

    with sharing(Places()):
        asyncio.run(requests())
    assert most == {"a": 3, "b": 2}
    asyncio.run(requests())
    assert most == {"a": 10, "b": 10}, "nothing is shared outside"


def test_a_place_that_nobody_gives_back_is_free_again_after_its_time() -> None:
    async def lost() -> None:
        time = [0.0]
        places = Places(lambda: time[0])
        first = await places.take("a", 1, 30.0)
        assert first is not None

        async def pass_time() -> None:
            await asyncio.sleep(0.02)
            time[0] += 1.0

        passing = asyncio.create_task(pass_time())
        assert await places.take("a", 1, 30.0) is None, "who waits is to ask again"
        await passing
        time[0] = 30.0
        second = await places.take("a", 1, 30.0)
        assert second is not None
        await places.leave("a", first)  # it comes late
        assert await places.take("b", 1, 30.0) is not None
        time[0] = 31.0
        assert await asyncio.wait_for(places.take("a", 2, 30.0), 5) is not None

    asyncio.run(lost())


def test_who_asks_first_is_served_first() -> None:
    async def queue() -> list[int]:
        places, order = Places(), list[int]()
        held = await places.take("a", 1, 60.0)
        assert held is not None

        async def ask(number: int) -> None:
            place = await places.take("a", 1, 60.0)
            assert place is not None
            order.append(number)
            await places.leave("a", place)

        waiting = [asyncio.create_task(ask(number)) for number in range(4)]
        await asyncio.sleep(0.02)
        await places.leave("a", held)
        await asyncio.gather(*waiting)
        return order

    assert asyncio.run(queue()) == [0, 1, 2, 3]
