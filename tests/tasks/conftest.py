"""Tests may draw from torch's global generator; the code under test may not."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
