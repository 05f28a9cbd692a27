import random

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    value = random.randrange(10**6)
    print(f'seed {value}')
    torch.manual_seed(value)
