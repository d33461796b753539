"""The search as an Optuna study."""

import gc
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from heat.thinning.moves import State, ThinningRules, removed_mass
from heat.thinning.nested import whole_chain
from heat.thinning.study import WORKER, Problem, _retry_killed, best_state, decode, encode, search
from heat.thinning.study_storage import check_storage, open_storage
from supernet.errors import UserError
from tests.command_line import run
from tests.toy_space import LOGITS, SPACE, chain_of, latency_ms


def problem(max_ms: float = 30.0, delay_s: float = 0.0) -> Problem:
    full = State.full(SPACE)

    def lost(state: State) -> float:
        time.sleep(delay_s)
        return removed_mass(full, state, LOGITS)

    return Problem(SPACE, LOGITS, ThinningRules(), latency_ms, lost, max_ms, "mass")


def greedy(max_ms: float) -> State:
    chain = chain_of()
    index = chain.reach(lambda state: latency_ms(state) <= max_ms)
    assert index is not None
    return chain.states[index]


def test_a_state_survives_its_parameters() -> None:
    state = greedy(25.0)
    values = encode(state, SPACE, LOGITS)
    again = decode(values, SPACE, LOGITS)
    assert again.architecture(SPACE, LOGITS) == state.architecture(SPACE, LOGITS)
    assert again.positions() == state.positions()
    empty = {key: "identity" if key[0] == "s" else value for key, value in values.items()}
    assert [len(decode(empty, SPACE, LOGITS).live(stage)) for stage in (1, 2, 3, 4)] == [1] * 4


@pytest.mark.parametrize("method", ["tpe", "nsga2", "random"])
def test_a_study_is_never_worse_than_its_start(method: str) -> None:
    own = problem()
    start = greedy(own.max_ms)
    study = search(own, method, trials=25, starts=[start])  # type: ignore[arg-type]
    best = best_state(study, own)
    assert best is not None and latency_ms(best) <= own.max_ms
    plain = decode(encode(start, SPACE, LOGITS), SPACE, LOGITS)
    assert own.lost(best) <= own.lost(plain)
    assert len(study.trials) == 25


def test_a_study_goes_on_and_others_are_refused(tmp_path: Path) -> None:
    storage = str(tmp_path / "study.journal")
    search(problem(), "random", trials=4, storage=storage)
    study = search(problem(), "random", trials=7, storage=storage)
    assert len(study.trials) == 7
    with pytest.raises(UserError, match="made by another space, evaluator, limit"):
        search(problem(max_ms=12.0), "random", trials=8, storage=storage)
    with pytest.raises(UserError, match="no folder"):
        open_storage(str(tmp_path / "absent" / "study.journal"))
    with pytest.raises(UserError, match="cannot be opened"):
        open_storage("nosuchdatabase://here/study")


def test_a_study_knows_its_table_and_supernet(tmp_path: Path) -> None:
    """Two workers with tables of different devices would mix their milliseconds."""
    storage = str(tmp_path / "study.journal")
    search(replace(problem(), based_on="one"), "random", trials=2, storage=storage)
    with pytest.raises(UserError, match="latency table or supernet"):
        search(replace(problem(), based_on="other"), "random", trials=3, storage=storage)


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")

    monkeypatch.setattr("sqlalchemy.create_engine", absent)
    with pytest.raises(UserError, match=r"pip install 'heatdetr\[postgresql\]'"):
        check_storage("postgresql://me:secret@localhost/study")


def test_what_is_no_study_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("notes")  # one line: Optuna would take it for a torn one, and append
    with pytest.raises(UserError, match="is no journal of a study"):
        open_storage(str(text))
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE customers (name TEXT)")
        database.commit()
    before = other.read_bytes()
    for url, message in (
        (f"sqlite:///{other}", "holds something else"),
        (str(other), "is a database"),
        (f"sqlite:///{text}", "is no SQLite database"),
        (f"sqlite:///{tmp_path}/absent/study.db", "no folder"),
        (str(tmp_path), "is a folder"),
        ("sqlite://", "keeps nothing"),
        ("sqlite:///:memory:", "keeps nothing"),
        ("mysql://user:secret@localhost/study", "cannot be opened"),
        ("postgresql+nodriver://user:secret@localhost/study", "cannot be opened"),
    ):
        for check in (check_storage, open_storage):
            with pytest.raises(UserError, match=message) as raised:
                check(url)
            assert "secret" not in str(raised.value) and "\n" not in str(raised.value)
    assert text.read_text() == "notes" and other.read_bytes() == before
    assert not (tmp_path / "absent").exists()
    journal = tmp_path / "study.journal"
    check_storage(str(journal))
    assert not journal.exists(), "checking writes nothing"


def test_a_cut_journal_goes_on_or_is_refused_in_one_line(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    search(problem(), "random", trials=4, storage=str(journal))
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])  # a worker was killed while it wrote
    study = search(problem(), "random", trials=6, storage=str(journal))
    assert len([t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]) == 6
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b'{"op_code": 4}\n', *lines[3:]]))
    with pytest.raises(UserError, match=r"--study .* cannot be") as raised:
        search(problem(), "random", trials=7, storage=str(journal))
    assert "\n" not in str(raised.value)


def test_a_study_of_another_program_is_not_joined(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    other = optuna.create_study(study_name="heat-random", storage=open_storage(storage))
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(UserError, match="is not HEAT's"):
        search(problem(), "random", trials=2, storage=storage)


def work(storage: str, delay_s: float) -> None:
    search(problem(delay_s=delay_s), "random", trials=12, storage=storage)


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql"))
    return {
        "journal": str(tmp_path / "study.journal"),
        "sqlite": f"sqlite:///{tmp_path}/study.db",
    }[request.param]


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """Run a PostgreSQL server of our own; it refuses to run as root."""
    pytest.importorskip("psycopg")
    if not shutil.which("initdb") or not shutil.which("pg_ctl"):
        pytest.skip("no PostgreSQL server is installed")
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if user:
        shutil.chown(folder, user)

    def run(*command: object) -> None:
        log = folder / "log"
        done = subprocess.run(
            [str(part) for part in command], user=user, cwd=folder, capture_output=True, check=False
        )
        if done.returncode:
            said = log.read_text() if log.exists() else done.stderr.decode()
            pytest.skip(f"PostgreSQL does not start here: {said.strip()[-200:]}")

    try:
        data = folder / "data"
        run("initdb", "--username=heat", "--auth=trust", "--no-sync", "-D", data)
        settings = f"-k {folder} -h ''"
        run("pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", settings, "start")
        yield f"postgresql+psycopg://heat@/postgres?host={folder}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # studies keep their connections
            gc.collect()
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_of_two_workers_one_retries_a_killed_ones_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw it running; the slower one finds it told already and goes on."""
    found = optuna.create_study(storage=open_storage(str(tmp_path / "study.journal")))
    trial = found.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr(WORKER, f"{socket.gethostname()}:{2**22 + 1}")
    seen = found.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    monkeypatch.setattr(found, "get_trials", lambda **_: seen)
    for _ in range(2):
        _retry_killed(found)
    monkeypatch.undo()
    waiting = found.get_trials(states=(optuna.trial.TrialState.WAITING,))
    assert len(waiting) == 1


def test_a_storage_that_gives_no_trial_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = optuna.Study.ask

    def failing(self: optuna.Study) -> optuna.Trial:
        if self.get_trials(deepcopy=False):
            raise optuna.exceptions.StorageInternalError("disk full")
        return ask(self)

    monkeypatch.setattr(optuna.Study, "ask", failing)
    with pytest.raises(optuna.exceptions.StorageInternalError, match="disk full"):
        search(problem(), "random", trials=3)


def test_a_trial_that_another_worker_finished_is_left_to_it(tmp_path: Path) -> None:
    """SQLite may hand a queued trial to two workers."""
    storage = f"sqlite:///{tmp_path}/study.db"

    def lost(_: State) -> float:
        other = optuna.load_study(study_name="heat-random", storage=open_storage(storage))
        (trial,) = other.get_trials(states=(optuna.trial.TrialState.RUNNING,))
        other.tell(trial.number, 1.0)
        return 2.0

    own = replace(problem(), lost=lost)
    study = search(own, "random", trials=3, storage=storage)
    assert [trial.value for trial in study.trials] == [1.0] * 3

    def broken(_: State) -> float:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        search(replace(problem(), lost=broken), "random", trials=4, storage=storage)


def test_workers_share_a_study_and_a_killed_ones_trial_is_retried(storage: str) -> None:
    search(problem(), "random", trials=1, storage=storage)
    context = multiprocessing.get_context("spawn")
    doomed = context.Process(target=work, args=(storage, 60.0))
    doomed.start()
    opened = open_storage(storage)
    study = optuna.load_study(study_name="heat-random", storage=opened)
    deadline = time.monotonic() + 60
    running = (optuna.trial.TrialState.RUNNING,)
    while time.monotonic() < deadline:
        now = study.get_trials(states=running)
        if now and len(now[0].params) == len(encode(State.full(SPACE), SPACE, LOGITS)):
            break
        time.sleep(0.1)
    assert doomed.pid is not None
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.join()
    killed = study.get_trials(states=running)[0]
    workers = [context.Process(target=work, args=(storage, 0.0)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    finished = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert len(finished) >= 12
    assert any(trial.params == killed.params for trial in finished)
    assert study.trials[killed.number].state == optuna.trial.TrialState.FAIL


def test_a_study_that_ends_worse_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own limit is another than that of the greedy search: greedy may not keep it."""
    where = ["--device", "cpu-i7", "--space", "micro", "--input-size", "64x96", "--out", tmp_path]
    thin = ["thin", "--target-fps", 550, "--trust-table", "--ap-drop", "mass", *where]
    for command in (["profile", "--estimate", *where], thin):
        code, _, errors = run(*command)
        assert code == 0, errors
    file = tmp_path / "thin" / "architecture.json"
    greedy = file.read_text()

    def smallest(_: object, problem: Problem) -> State:
        rules, ms = problem.rules, problem.latency_ms
        return whole_chain(problem.space, problem.logits, rules, ms)[-1]

    monkeypatch.setattr("heat.thinning.study.best_state", smallest)
    code, result, errors = run(*thin, "--search", "random", "--trials", 1)
    assert code == 0, errors
    assert file.read_text() == greedy and result["steps"] > 1
