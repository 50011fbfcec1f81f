"""The debug log: on stderr with `-v`, nowhere else, and on no logger but the package's own."""

import logging
import subprocess
import sys

import pytest

import ckpt_doctor
from ckpt_doctor.cli import main
from ckpt_doctor.result import AuditResult
from tests.catalogue import BY_NAME, DATA, FIXTURES

BROKEN = BY_NAME["tf1_layers/trainable/model.ckpt-400"].path


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command line whose scan logs two lines; return what went to stderr."""
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("ckpt_doctor.somewhere")

    def scan(*_, **__):
        logger.debug("batch %d", 7)
        logging.getLogger("another.library").warning("not ours")
        return AuditResult(())

    monkeypatch.setattr("ckpt_doctor.audit.scan", scan)

    def run(*argv):
        assert main(list(argv)) == 2  # nothing was scanned
        return [line for line in capsys.readouterr().err.splitlines() if "no checkpoint found" not in line]

    return run


def test_only_verbose_shows_it(run, monkeypatch):
    assert run("scan", "x") == []
    line = ["ckpt_doctor.somewhere: batch 7"]
    assert run("scan", "x", "-v") == run("-v", "scan", "x") == run("-v", "scan", "-v", "x") == line
    assert run("scan", "x") == []
    monkeypatch.setenv("CKPT_DOCTOR_VERBOSE", "1")
    assert run("scan", "x") == line


def test_loggers_are_left_as_they_were(run):
    def state():
        return [
            (logger.level, logger.propagate, list(logger.handlers))
            for logger in (logging.getLogger(), logging.getLogger("ckpt_doctor"))
        ]

    before = state()
    run("scan", "-v", "x")
    assert state() == before


@pytest.mark.tensorflow
def test_it_tells_the_door_the_data_the_levels_and_the_cache(caplog):
    pytest.importorskip("tensorflow")
    with caplog.at_level(logging.DEBUG, "ckpt_doctor"):
        ckpt_doctor.fix(BROKEN, data=DATA, dry_run=True)
    told = [f"{record.name.removeprefix('ckpt_doctor.')}: {record.getMessage()}" for record in caplog.records]
    for line in (
        f"capture.estimation: {BROKEN}: run by its graph; nothing names a Keras model",
        f"capture.data: --data {DATA}: array (the only one) (1397, 8, 8, 1) float32 feeds the input images (images:0)",
        "capture.engine: level 0 measures bn1; reads 1 inputs and 0 live tensors, keeps 1, drops 0",
        "capture.engine: level 3 measures bn4; reads 0 inputs and 1 live tensors, keeps 0, drops 1",
    ):
        assert line in told
    # The largest that is kept is what goes into bn2: 12 channels at 8 by 8 places of 1397 samples, float32.
    size = 1397 * 8 * 8 * 12 * 4
    cache = f"of live tensors at most {size} bytes were in memory (limit 2000000000); 0 bytes went to disk"
    assert f"capture.engine: {cache}" in told
    # What no handler asks for is shown from the level of warnings on.
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def test_from_python_nothing_is_shown():
    # A repair without data logs from every room but that which runs models.
    cold = FIXTURES / "zoo" / "tf1" / "cold"
    program = f"import ckpt_doctor; ckpt_doctor.fix({str(cold)!r}, method='debias', unproven=True, dry_run=True)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("", "")
