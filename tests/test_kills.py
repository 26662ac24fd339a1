"""Killed or asked to end at any moment, a run that is started again ends with the bits of one left alone.

DTRAIN_TEST_LONG=1: a hundred kills and two hundred signals.
"""

import itertools
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from killing import SOON, WAYS, Campaign, Moment, assert_same_course, assert_same_run, newest_step

from dtrain.cli.ending import INTERRUPTED, STOPPED

pytestmark = pytest.mark.alone

IS_LONG = "DTRAIN_TEST_LONG" in os.environ
STATUS = {signal.SIGTERM: STOPPED, signal.SIGUSR1: STOPPED, signal.SIGINT: INTERRUPTED}
# How many lives of a run are killed; and of these how many have a launcher, which takes its seconds to come.
KILLS = {"one process": (3, 0), "DDP": (2, 1), "ZeRO-2": (2, 0)}
SIGNALS = {"one process": 3, "DDP": 2, "ZeRO-2": 1}
if IS_LONG:
    KILLS = {"one process": (36, 4), "DDP": (34, 6), "ZeRO-2": (30, 6)}
    SIGNALS = {"one process": 80, "DDP": 70, "ZeRO-2": 50}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_killed_at_random_moments_ends_with_the_bits_of_one_left_alone(
    way: str, tmp_path: Path, on_cpu: None
) -> None:
    count, launched = KILLS[way]
    chance = random.Random(f"kills, {way}")
    # Ranks whose launcher was killed look for it about once in a second, and save: so many steps may pass.
    steps = 20 + 12 * count + 150 * launched
    campaign = Campaign(WAYS[way], tmp_path, steps, chance)
    alone = campaign.leave_alone()
    whoms = itertools.cycle(["launcher", "one rank", "all"])
    with_launcher = dict(zip(sorted(chance.sample(range(count), launched)), whoms, strict=False))
    whom_killed: Counter[str] = Counter()
    slowest = 0.0
    for number in range(count):
        before = campaign.last()
        lives = campaign.live(launched=number in with_launcher)
        whom = with_launcher.get(number) or chance.choice(["one rank", "all"])
        # With no launcher nobody tells the other that one rank is gone before they have met; and a launcher
        # that is killed while it starts its ranks may have started one more than was seen.
        starting = whom == "all" and number not in with_launcher
        campaign.wait_for(Moment.draw(chance, starting=starting), lives, before)
        began = time.monotonic()
        for pid in lives.victims(whom, chance):
            os.kill(pid, signal.SIGKILL)
        codes = lives.codes()
        slowest = max(slowest, time.monotonic() - began)
        assert not {None, 0} & set(codes), lives.said()
        whom_killed[whom] += 1
        campaign.note(before)
        campaign.assert_whole()
    lives = campaign.live()
    assert lives.codes() == [0] * WAYS[way].size, lives.said()
    run = campaign.only(campaign.runs)
    assert_same_run(run, alone)
    assert not any((run / ".partial").iterdir())
    print(f"\n{way}: {count} kills, {dict(whom_killed)}, {dict(campaign.ended)}, gone in {slowest:.1f} s")


@pytest.mark.parametrize("way", WAYS)
def test_a_run_asked_to_end_at_random_moments_loses_no_step(way: str, tmp_path: Path, on_cpu: None) -> None:
    chance = random.Random(f"signals, {way}")
    size, settings = WAYS[way].size, ["checkpoint.keep=100000", "every.save=15"]
    # Several ranks look for signals about once in a second: that many steps a life takes, and more.
    steps = 40 + (15 if size == 1 else 60) * min(SIGNALS[way], 20)
    left, sent = SIGNALS[way], Counter[str]()
    first = Campaign(WAYS[way], tmp_path / "0", steps, chance)
    alone = first.leave_alone(*settings)
    slowest, number = 0.0, 0
    while left:
        campaign = first if number == 0 else Campaign(WAYS[way], tmp_path / str(number), steps, chance)
        number += 1
        is_finished = False
        while left and not is_finished and campaign.last() < steps - 40:
            asked = chance.choice(list(STATUS))
            before = campaign.last()
            lives = campaign.live(*settings)
            whom = chance.choice(["one rank", "all"])
            campaign.wait_for(Moment.draw(chance, starting=False), lives, before)
            began = time.monotonic()
            for pid in lives.victims(whom, chance):
                os.kill(pid, asked)
            codes = lives.codes()
            slowest = max(slowest, time.monotonic() - began)
            is_finished = codes == [0] * size  # asked too late
            assert is_finished or codes == [STATUS[asked]] * size, (codes, asked, lives.said())
            run = campaign.only(campaign.runs)
            assert newest_step(run) == campaign.last()
            campaign.assert_whole()
            sent[f"{asked.name} to {whom}"] += 1
            left -= 1
        if not is_finished:
            lives = campaign.live(*settings)
            assert [life.end(20 * SOON) for life in lives.lives] == [0] * size, lives.said()
        assert_same_course(campaign.only(campaign.runs), alone)
    print(f"\n{way}: {dict(sent)}, {number} runs, ended in {slowest:.1f} s")
