"""What every test may ask for."""
import pytest
import torch

cuda = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
devices = ["cpu", cuda] + ["mps"]*torch.backends.mps.is_available()


@pytest.fixture(params=devices, scope="session")
def device(request):
    "Each device in turn; the tests for CUDA are listed as skipped where there is none."
    return request.param


@pytest.fixture(autouse=True)
def seeded():
    "The same random numbers for every run of a test."
    torch.manual_seed(0)
