"""What masks and turns cost, as measured, and which is the faster way. Pure: the clock comes in as arguments."""

from __future__ import annotations

from collections.abc import Mapping

from modelctl.runner.sequence import Scales

AGE = {True: 30.0, False: 300.0}  # masked: seconds for which a measured time is believed; tries of turns stall a crowd
GAIN = 0.9  # a change of mode must promise this much


class StepTimes:
    """As measured, natively and masked: seconds of a step that generates one token a row, and of a prompt's row."""

    def __init__(self) -> None:
        self._known: dict[tuple[bool, int], tuple[float, float]] = {}  # (masked, rows) -> (seconds, when)
        self._prompts: dict[bool, tuple[float, float]] = {}  # masked -> (seconds a row, when)
        self._n_generated, self._n_of_prompts = 1000.0, 0.0  # rows lately; at first prompts are taken for short

    def learn(self, masked: bool, rows: int, seconds: float, now: float) -> None:
        usual = self._known.get((masked, rows), (seconds, now))[0]
        self._known[masked, rows] = (usual + 0.2 * (seconds - usual), now)
        self._n_generated = 0.999 * self._n_generated + rows
        self._n_of_prompts *= 0.999

    def learn_prompt(self, masked: bool, rows: int, seconds: float, now: float) -> None:
        usual = self._prompts.get(masked, (seconds / rows, now))[0]
        weight = min(0.5, rows / 256)  # short ones tell little: each batch has its price too
        self._prompts[masked] = (usual + weight * (seconds / rows - usual), now)
        self._n_of_prompts += rows

    @property
    def prompt_share(self) -> float:
        """Rows of prompts, lately, for each that generated."""
        return self._n_of_prompts / self._n_generated

    def forget(self, masked: bool) -> None:
        self._known = {key: value for key, value in self._known.items() if key[0] != masked}
        self._prompts.pop(masked, None)

    def of_prompt(self, masked: bool, now: float) -> float | None:
        """Seconds of one row, measured lately."""
        known = self._prompts.get(masked)
        return known[0] if known and now - known[1] < AGE[masked] else None

    def usual(self, masked: bool, rows: int) -> float | None:
        """Measured for just this."""
        known = self._known.get((masked, rows))
        return known[0] if known else None

    def estimate(self, masked: bool, rows: int, now: float) -> float | None:
        """From the nearest number of rows measured lately; a step's cost grows with its rows, and has a floor."""
        recent = [(n, s) for (m, n), (s, at) in self._known.items() if m == masked and now - at < AGE[masked]]
        if not recent:
            return None
        n, seconds = min(recent, key=lambda known: abs(known[0] - rows))
        return seconds * (rows + 1) / (n + 1)


def is_faster(counts: Mapping[Scales, int], times: StepTimes, *, masked: bool, overhead: float, now: float) -> bool:
    """Whether masked steps beat rounds of native ones, with `counts` rows a mix, prompts included. `masked`: how they
    run at present. `overhead`: the share of time that native turns lose to changing adapters."""
    rows = sum(counts.values())
    native = [times.estimate(False, n, now) for n in counts.values()]
    one = times.estimate(True, rows, now)
    if one is None or None in native:
        return one is None and len(counts) > 1  # to be tried
    round_ = sum(seconds for seconds in native if seconds is not None) * (1 + overhead)
    of_prompts = times.of_prompt(True, now), times.of_prompt(False, now)
    if of_prompts[0] is not None and of_prompts[1] is not None:
        one += rows * times.prompt_share * of_prompts[0]
        round_ += rows * times.prompt_share * of_prompts[1]
    return round_ > GAIN * one if masked else one < GAIN * round_


def are_apart(n_rows: int, n_mixes: int, times: StepTimes, *, change: float, now: float) -> bool:
    """Whether prompts with so many rows had better run natively, mix by mix, than masked, all in one batch. With many
    adapters or odd scales masks cost a prompt more than others' tokens. `change`: seconds of a change of adapters."""
    masked, native = times.of_prompt(True, now), times.of_prompt(False, now)
    if masked is None or native is None:
        return masked is not None  # to be tried
    return n_rows * native + (n_mixes + 1) * change < GAIN * n_rows * masked  # and back
