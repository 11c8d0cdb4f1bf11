import pytest
from pruning_models import small_bert


@pytest.fixture
def bert():
    return small_bert()
