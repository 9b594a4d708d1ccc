"""Which step a group of processes stops after, and what becomes of signals meanwhile."""

from __future__ import annotations

import os
import signal

import pytest
import torch.distributed as dist

from gersp_mm.engine.signals import SIGNALS, StopRequest, held_back


def group(monkeypatch, size=3):
    """Requests of as many ranks, which share a store as the processes of a group do."""
    store = dist.HashStore()
    ranks = [StopRequest(lambda text: None) for _ in range(size)]
    for rank in ranks:
        rank._store = store
    return ranks


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("behind", [0, 1, 2])
def test_all_ranks_stop_after_the_same_step_wherever_the_signal_arrives(monkeypatch, first, behind):
    """It arrives between the questions of two ranks after one step; one rank asks late."""
    ranks = group(monkeypatch)
    order = sorted(range(3), key=lambda rank: rank == behind)
    stopped: dict[int, int] = {}
    for step in range(1, 6):
        for rank in order:
            if step == 3 and rank == first:
                ranks[rank].number = signal.SIGUSR1
            if rank not in stopped and ranks[rank].due():
                stopped[rank] = step
    assert stopped == {0: 4, 1: 4, 2: 4}
    assert {rank.number for rank in ranks} == {signal.SIGUSR1}


def test_two_signals_at_once_are_one_request(monkeypatch):
    ranks = group(monkeypatch, 2)
    ranks[0].number, ranks[1].number = signal.SIGHUP, signal.SIGTERM
    assert not any(rank.due() for rank in ranks)
    assert all(rank.due() for rank in ranks)
    assert [rank.number for rank in ranks] == [signal.SIGHUP] * 2


def test_the_process_ends_with_the_code_of_the_signal_after_saving():
    request, saved = StopRequest(lambda text: None), []
    with request.listening():
        signal.raise_signal(signal.SIGUSR1)
        assert request.due()
        with pytest.raises(SystemExit) as caught:
            request.leave(lambda: saved.append(True))
    assert caught.value.code == 128 + signal.SIGUSR1 and saved == [True]


def child_that_gets(number):
    """Fork a process that sends itself a signal; return its exit code, or minus the signal."""
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), number)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_no_signal_ends_a_worker_that_has_only_just_started(number):
    assert child_that_gets(number) == -number
    with held_back():
        assert child_that_gets(number) == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(SIGNALS)


def test_a_forked_process_with_the_handler_asks_for_nothing():
    """It has the handler until its own start-up replaces it."""
    said = []
    request = StopRequest(said.append)
    with request.listening():
        assert child_that_gets(signal.SIGHUP) == 0
        assert request.number == 0
        signal.raise_signal(signal.SIGHUP)
    assert request.number == signal.SIGHUP and len(said) == 1


def test_a_rank_may_ask_after_the_store_has_gone_with_rank_0(monkeypatch):
    (rank,) = group(monkeypatch, 1)

    class Gone:
        def compare_set(self, key, expected, value):
            raise RuntimeError("Connection reset by peer")

    rank._store = Gone()
    assert not rank.due()
    rank.number = signal.SIGTERM  # which came too late
    assert not rank.due()
