"""Worker processes under test."""

import signal
import subprocess
import sys
import threading
import time

from example_project.postgres import PROJECT


class Clock:
    """A clock of a test's own, in seconds."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


class WorkerProcess:
    """``manage.py embed_worker`` in a process of its own; ``steps`` with the steps of a test."""

    def __init__(self, arguments, environment, *, steps=False):
        program = ["-m", "tests.steps"] if steps else ["manage.py", "embed_worker"]
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def send(self, number):
        self.process.send_signal(number)

    def says(self, words, seconds=60):
        """The line with these words, once the worker has printed it; killed after ``seconds``."""
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        said = []
        try:
            for line in self.process.stdout:
                said.append(line)
                if words in line:
                    return line
        finally:
            timer.cancel()
        raise AssertionError(
            f"the worker ended, or was killed, without saying {words!r}: {''.join(said)}"
        )

    def goes_on(self):
        """Let it go on from the step at which it is held."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait(self, seconds=60):
        """The exit status and all output."""
        output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, output

    def kill(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def work(worker):
    """Rounds until one finds nothing to do."""
    while worker.round():
        pass


def work_off(worker, claim):
    """Read, embed and write the rows of a claim."""
    worker.pipeline.accept([claim])
    while worker.pipeline.busy:
        worker.pipeline.advance(1.0)


def until(condition, seconds=30, every=0.02):
    """Wait until ``condition()`` is true; its value. Fails the test after ``seconds``."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain for {condition}"
        time.sleep(every)
    return value
