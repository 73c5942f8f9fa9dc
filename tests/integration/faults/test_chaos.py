"""A round of chaos, or three; ``make chaos`` runs twenty. A round that breaks names its seed."""

import random
from collections.abc import Iterator

import pytest
from support.chaos import CHAOS_SPEC, MissedError, one_round
from support.clusters.nodes import Nodes
from support.tiers import exhaustive
from support.undisturbed import Numbers, undisturbed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("chaos"), pytest.mark.timeout(900)]

FIRST = random.SystemRandom().randrange(10**6)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with Nodes() as made:
        yield made


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    spec = tmp_path_factory.mktemp("undisturbed") / "spec.yaml"
    spec.write_text(CHAOS_SPEC)
    return undisturbed(spec)


@pytest.mark.parametrize("number", [0, *exhaustive(1, 2)])
def test_a_round_of_chaos(
    number: int, nodes: Nodes, expected: Numbers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for seed in range(FIRST + 10 * number, FIRST + 10 * (number + 1)):
        with one_round(tmp_path_factory.mktemp("chaos") / "sweep", nodes, seed) as this:
            try:
                this.run()
            except MissedError as missed:
                print(f"seed {seed} does not count: {missed}")  # noqa: T201 - shown by -rA
                continue
            this.check(expected)
        print(f"seed {seed}: killed {'; '.join(this.kills)}; interrupted {len(this.interrupted)}")  # noqa: T201 - the same
        return
    pytest.fail("ten rounds finished before everything was killed")
