from tests.simulation.choices import Choices, Drawn, explore, shrink


def test_an_exploration_takes_every_way_once() -> None:
    """Decisions that depend on earlier ones are found, too."""
    ways: list[list[int]] = []

    def run(choices: Choices) -> None:
        if choices.pick(2):
            choices.pick(3)
        choices.pick(1)
        ways.append(choices.taken[:])

    count, _ = explore(run)

    assert ways == [[0], [1, 0], [1, 1], [1, 2]]
    assert count == 4


def test_an_exploration_goes_on_from_a_state_once() -> None:
    """Two ways to one state are one from there on."""
    ends: list[list[int]] = []

    def run(choices: Choices) -> None:
        total = 0
        for place in range(3):
            total += choices.pick(2)
            if choices.known((place, total)):
                return
        ends.append(choices.taken[:])

    explore(run)

    assert len(ends) == 4  # sums, not ways


def test_chance_is_the_same_for_the_same_seed() -> None:
    """A seed is all that a schedule needs."""
    one, same, other = (Drawn(seed) for seed in (1, 1, 2))

    for choices in (one, same, other):
        for _ in range(20):
            choices.pick(7, 0.5)

    assert one.taken == same.taken != other.taken


def test_a_script_is_shrunk_to_what_matters() -> None:
    """What can be left out or lowered is."""

    def fails(script: list[int]) -> bool:
        return 3 in script and sum(number >= 2 for number in script) >= 2

    assert shrink([0, 5, 1, 9, 3, 0, 0, 7, 2, 4, 0], fails) in ([3, 2], [2, 3])
