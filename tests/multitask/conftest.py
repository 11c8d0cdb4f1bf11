"""What tests of runs share: commands as processes of their own."""

import pytest
from forked import Command


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """Call scripts in processes of their own → exit code, stdout, stderr."""
    command = Command(tmp_path_factory.mktemp("streams"))
    yield command
    command.close()
