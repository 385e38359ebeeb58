"""What every test runs under."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: the tests run side by side

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("here"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(scope="session", autouse=True)
def neutral_environment():
    """No test depends on the shell, or on what pytest-xdist sets (COLUMNS = 80) in its workers."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "DLCALC_HARDWARE_PATH", "DLCALC_TOPOLOGY"):
            patch.delenv(name, raising=False)
        yield
