"""Random numbers of these tests."""

import pytest

from tests.support.foreign_graphs import reseed


@pytest.fixture(autouse=True)
def _same_numbers():
    reseed()
