"""Processes that are the ranks of a gloo group and run functions of the tests."""

import multiprocessing.connection
import tempfile
import traceback

import torch

SECONDS = 120  # for one function, after which a rank that waits for another one is given up


class Ranks:
    def __init__(self, count):
        self._count = count
        self._start()

    def _start(self):
        self._folder = tempfile.TemporaryDirectory()
        store = f"file://{self._folder.name}/store"
        spawn = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(self._count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(rank, self._count, store, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function, *arguments):
        """What function(*arguments) returns on each rank. Raises AssertionError with the traceback of a rank that raises."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = {}
        try:
            while waiting := [pipe for pipe in self._pipes if pipe not in answers]:
                ready = multiprocessing.connection.wait(waiting, SECONDS)
                ranks = [self._pipes.index(pipe) for pipe in ready or waiting]
                assert ready, f"ranks {ranks} did not return from {function.__name__}{arguments}"
                for rank, pipe in zip(ranks, ready):
                    raised, answers[pipe] = pipe.recv()
                    assert not raised, f"rank {rank}: {raised}"
        except BaseException:  # the next call would wait for ranks that still run, and get their answers to this one
            self.stop()
            self._start()
            raise
        return [answers[pipe] for pipe in self._pipes]

    def stop(self):
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(rank, count, store, pipe):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    while True:
        function, arguments = pipe.recv()
        try:
            answer = None, function(*arguments)
        except Exception:
            answer = traceback.format_exc(), None
        pipe.send(answer)
