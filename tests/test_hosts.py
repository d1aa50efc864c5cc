"""Several machines on one folder: clocks that jump, process numbers that are the same, rows that another one lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prefdata.candidates import stream as sample_stream
from prefdata.candidates.sample import sample
from prefdata.errors import PrefdataError
from prefdata.prompts.ingest import ingest
from prefdata.scores import stream
from prefdata.scores.rank import rank
from prefdata.specs import IngestSpec, RankSpec, SampleSpec
from prefdata.storage.leases import WorkLeases
from prefdata.storage.run import Run

HOUR = 3600.0

HOST = """
import os, sys, time
from prefdata.storage import atomic as disk
from prefdata.storage import leases as claims
from prefdata.scores import stream as scoring
from prefdata.storage.run import PartWriter
if {emulate}:  # where nobody may make a namespace: another id of it, and the same process number
    disk._host = lambda: "same-" + {space!r}
    os.getpid = lambda: 7
    disk._start = lambda pid: 5
    disk.os.kill = lambda pid, signal: None
real = os.fsync
def slow(handle): time.sleep(0.02); real(handle)
os.fsync = slow  # a slow disk: what is written lies there unfinished for some time
claims.WorkLeases.__init__.__kwdefaults__["expires"] = 6.0
scoring.SHARE, PartWriter.__init__.__kwdefaults__["rows"] = 30, 10
sys.argv[0] = "prefdata"
from prefdata.cli.main import main
main()
"""

SLOW = "import time\ndef f(messages, answer):\n    time.sleep(0.002)\n    return len(answer)\n"


def can_unshare() -> bool:
    return subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def namespaces() -> bool:
    """Whether this machine lets us make "hosts" that count their processes by themselves, as containers do."""
    return sys.platform == "linux" and can_unshare()


def on_host(space: str, namespaces: bool, path: Path, *arguments: object) -> subprocess.Popen[str]:
    """A prefdata command on a "host" that has our name and gives the process the number that all others give."""
    script = path / f"{space}.py"
    script.write_text(HOST.format(emulate=not namespaces, space=space))
    command = [sys.executable, str(script), *map(str, arguments)]
    if namespaces:
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with 200 prompts of three answers each."""
    file = tmp_path / "asked.jsonl"
    rows = ({"prompt": f"Say {i}.", "responses": [f"{i} {'x' * k}" for k in range(3)]} for i in range(200))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "f.py").write_text(SLOW)
    ingest(Run(tmp_path / "run"), [str(file)], IngestSpec.parse({"as": "candidates", "source": "asked"}))
    return Run(tmp_path / "run")


def stored(run: Run) -> list[str]:
    parts = run.partition("scores", "f").checked_parts()
    return pl.concat([pl.read_parquet(part) for part in parts])["candidate_id"].to_list()


@pytest.mark.parametrize("kill", [False, True])
def test_hosts_with_one_name_and_one_process_number_share_a_run(
    run: Run, tmp_path: Path, namespaces: bool, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    """Three hosts score; where one is killed, the others notice by its silence, and nothing is lost or there twice."""
    command = ["rank", run.path, "--function", f"{tmp_path / 'f.py'}:f"]
    hosts = [on_host(space, namespaces, tmp_path, *command) for space in ("0a0b0c01", "0a0b0c02", "0a0b0c03")]
    deadline = time.monotonic() + 120
    while not list(run.path.glob("scores/*/_claims/asked-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    if kill:
        hosts[0].send_signal(signal.SIGKILL)
    ended = [host.communicate(timeout=180)[1] for host in hosts]
    assert [host.returncode for host in hosts[kill:]] == [0] * (3 - kill), ended
    partition = run.partition("scores", "f")
    if partition.state != "finished":  # the killed one was the last that the others saw at work
        assert on_host("0a0b0c04", namespaces, tmp_path, *command).wait(120) == 0
    assert partition.state == "finished"
    assert sorted(stored(run)) == sorted(run.only("candidates").read(["candidate_id"])["candidate_id"].to_pylist())
    success = partition.success()
    assert success is not None
    assert (success.report.rows_in, success.report.rows_out) == (600, 600)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that does not jump; it stands still unless it is moved."""
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[WorkLeases]:
    """A worker on another machine that has taken a share; it touches its file only when a test does."""
    worker = WorkLeases(tmp_path, expires=HOUR)  # its own heart beats every ten minutes
    worker._me = "worker-other-0a0b0c0d-7-5-00000000"
    with worker:
        worker.acquire("share")
        yield worker


@pytest.mark.parametrize("jump", [-HOUR, 0.0, HOUR, 365 * 24 * HOUR])
def test_a_clock_that_jumps_makes_no_dead_worker_live_and_no_living_one_dead(
    tmp_path: Path, elsewhere: WorkLeases, clock: Clock, jump: float
) -> None:
    """The file's time is by whatever clock; what counts is that it changes while we look."""
    file = elsewhere.folder / elsewhere._me
    with WorkLeases(tmp_path) as mine:
        for beat in range(20):  # 200 s, a heartbeat each ten of them, each by a clock that is wrong in another way
            os.utime(file, (time.time() + jump * (beat % 2), time.time() + jump * (beat % 2)))
            assert mine.acquire("share") == "held"
            clock.now += 10
        assert mine.others() == [elsewhere._me]
        os.utime(file, (time.time() + jump, time.time() + jump))  # the last time
        assert mine.acquire("share") == "held"
        clock.now += 59
        assert mine.acquire("share") == "held"
        clock.now += 2
        assert mine.others() == []
        assert mine.acquire("share") == "left"


def test_a_worker_that_died_before_we_looked_is_dead_after_a_minute(
    tmp_path: Path, elsewhere: WorkLeases, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file's time does not tell: the last to finish waits as long, and then ends the work."""
    monkeypatch.setattr(time, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds))
    with WorkLeases(tmp_path) as mine:
        began = clock.now
        assert mine.last()
        assert 60 <= clock.now - began < 62


def test_replace_waits_to_see_whether_a_worker_elsewhere_lives(
    tmp_path: Path, elsewhere: WorkLeases, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = elsewhere.folder / elsewhere._me

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if clock.now > 1009:
            file.touch()

    monkeypatch.setattr(time, "sleep", sleep)
    assert WorkLeases(tmp_path).busy() == elsewhere._me
    assert clock.now < 1011
    monkeypatch.setattr(time, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds))
    assert WorkLeases(tmp_path).busy() is None


def test_a_worker_whose_claims_another_cleared_shows_itself_again(tmp_path: Path) -> None:
    with WorkLeases(tmp_path, expires=0.6) as worker:
        for path in worker.folder.iterdir():
            path.unlink()
        worker.folder.rmdir()
        deadline = time.monotonic() + 30
        while not (worker.folder / worker._me).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not worker.folder.exists()


def test_no_success_while_a_candidate_has_no_score(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in are those that were asked for: what another process lost is missed, and the same command makes it."""
    real, partition = stream.ScoreStream.score, run.partition("scores", "f")
    spec = RankSpec(function=f"{tmp_path / 'f.py'}:f")

    def loses(self: stream.ScoreStream, *given: Any) -> tuple[str, ...]:
        notes = real(self, *given)
        for part in partition.parts():  # one as a rule, several on a slow machine
            part.unlink()
        return notes

    with monkeypatch.context() as patched:
        patched.setattr(stream.ScoreStream, "score", loses)
        with pytest.raises(PrefdataError, match=r"scores/f lacks 600 of the 600 rows .* unfinished.*`prefdata rank`"):
            rank(run, spec)
    assert partition.state == "unfinished"
    assert rank(run, spec).report.rows_out == 600
    assert partition.state == "finished"


def test_no_success_while_a_candidate_is_not_drawn(
    run: Run, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there are as many rows as were asked for, of other prompts: every key is looked for."""
    spec = SampleSpec(model=str(tiny_policy), n=1, max_tokens=4, name="s", limit=8)
    sample(run, spec)
    real = sample_stream.answers

    def forgets(*given: Any) -> Iterator[Any]:
        return (answer for number, answer in enumerate(real(*given)) if number)

    with monkeypatch.context() as patched:
        patched.setattr(sample_stream, "answers", forgets)
        with pytest.raises(PrefdataError, match=r"candidates/s lacks 1 of the 12 rows that were asked for"):
            sample(run, spec.model_copy(update={"limit": 12}))
    assert run.partition("candidates", "s").state == "unfinished"
    assert sample(run, spec.model_copy(update={"limit": 12})).report.rows_out == 12
