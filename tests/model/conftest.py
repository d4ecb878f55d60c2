import pytest

from tests.model.torch_writer import fake_torch


@pytest.fixture
def torch(monkeypatch):
    return fake_torch(monkeypatch)
