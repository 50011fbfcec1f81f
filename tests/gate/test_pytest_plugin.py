"""The fixture for pytest, in a pytest of its own."""

import importlib.metadata
import shutil

import pytest

from tests.gate.conftest import FIXTURES, copy_bundle

pytest_plugins = ["pytester"]

# Where the package is installed, pytest finds the plugin itself.
INSTALLED = any(
    point.value == "ckpt_doctor.pytest_plugin" for point in importlib.metadata.entry_points(group="pytest11")
)
PLUGIN = [] if INSTALLED else ["-p", "ckpt_doctor.pytest_plugin"]


@pytest.fixture
def outcome(pytester, monkeypatch):
    """Run one test file in a folder with a sick and a healthy checkpoint."""
    monkeypatch.setenv("PYTHONPATH", str(FIXTURES.parent))
    copy_bundle(True, pytester.path / "sick")
    copy_bundle(False, pytester.path / "healthy")

    def run(text):
        pytester.makepyfile(text)
        return pytester.runpytest_subprocess(*PLUGIN, "-p", "no:cacheprovider", timeout=120)

    return run


def test_a_trainable_only_save_fails_the_test_with_the_report(outcome):
    result = outcome(
        """
        def test_healthy(ckpt_doctor):
            assert ckpt_doctor("healthy").summary.batch_norm_layers == 4

        def test_sick(ckpt_doctor):
            ckpt_doctor("healthy", "sick")
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*BN101 missing-moving-mean*4 layers", "*BN301 saver-omits-statistics*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_options_are_those_of_the_command_line(outcome, pytester):
    (pytester.path / ".ckpt-doctor.toml").write_text('ignore = ["BN3"]')
    result = outcome(
        """
        import pytest

        def test_options(ckpt_doctor):
            assert {f.rule for f in ckpt_doctor("sick", fail_on="never").checkpoints[0].findings} == {"BN101", "BN102"}
            ckpt_doctor("sick", ignore=["BN1", "BN3"])
            ckpt_doctor("sick", severity={"BN1": "note", "BN3": "note"})
            ckpt_doctor("sick", per_path_ignores={"sick": ["BN1", "BN3"]}, quick=True, strict=False)

        @pytest.mark.parametrize("options", [{"fail_onn": "note"}, {"ignore": ["BN9"]}, {"fail_on": "loud"}])
        def test_wrong(ckpt_doctor, options):
            ckpt_doctor("sick", **options)

        def test_gone(ckpt_doctor):
            ckpt_doctor("gone")

        def test_nothing(ckpt_doctor, tmp_path):
            ckpt_doctor(tmp_path)
        """
    )
    result.assert_outcomes(passed=1, failed=5)
    result.stdout.fnmatch_lines(
        [
            "ckpt-doctor: no such option: 'fail_onn'; did you mean fail_on?",
            "ckpt-doctor: no such rule: 'BN9'*",
            "ckpt-doctor: --fail-on loud: must be one of error, warning, note, never",
            "no verdict: gone: *",
        ]
    )


def test_the_plugin_loads_nothing_heavy(outcome):
    outcome(
        """
        import sys

        def test_light():
            assert not {"numpy", "h5py", "tensorflow", "ckpt_doctor.audit"} & set(sys.modules)
        """
    ).assert_outcomes(passed=1)


def test_keras_files_too(outcome, pytester):
    shutil.copy(FIXTURES / "keras_v3" / "broken.keras", pytester.path / "model.keras")
    outcome("def test_model(ckpt_doctor):\n    ckpt_doctor('model.keras', fail_on='warning')").assert_outcomes(failed=1)
