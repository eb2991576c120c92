"""The trained classifier that the tests of ``qat`` quantize."""

import pytest

from tests.support.qat import train_classifier


@pytest.fixture(scope="session")
def parent(tmp_path_factory):
    return train_classifier(tmp_path_factory.mktemp("parent"))
