"""What every test runs under."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: the tests run side by side

from hypothesis import HealthCheck, settings

settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("here"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")
