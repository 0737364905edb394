import pytest

from redist.protocol import use_secret


@pytest.fixture
def secret():
    """Sign with a secret during the test."""
    use_secret("sesame")
    yield "sesame"
    use_secret(None)
