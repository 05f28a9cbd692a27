import pytest
import torch

from sift_mm.kernels import masked_layers, sparse_conv2d


@pytest.fixture(scope='package', autouse=True)
def one_thread():
    # These tensors are tiny: on a busy machine threads that wait for each
    # other take ten times as long as the work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def calls(monkeypatch):
    """Record which products of each call run sparse."""
    made = []

    def noting(x, weight, bias, pattern, numbers, choice, *rest):
        made.append(tuple(choice))
        return sparse_conv2d(x, weight, bias, pattern, numbers, choice, *rest)

    monkeypatch.setattr(masked_layers, 'sparse_conv2d', noting)
    return made
