"""What every Python test needs of its oracle."""
import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def settled_vector_math():
    """The first call of MKL's vector functions by one thread alone (csrc/types/vector_math.h says why)."""
    if "torch" in sys.modules:
        sys.modules["torch"].zeros(1).cos()
