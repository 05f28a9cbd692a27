import pytest
import torch


@pytest.fixture(scope='package', autouse=True)
def one_thread():
    # These tensors are tiny: on a busy machine threads that wait for each
    # other take ten times as long as the work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
