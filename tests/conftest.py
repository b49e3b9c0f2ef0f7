"""What every test may ask for."""
import pytest
import torch

devices = ["cpu"] + ["cuda"]*torch.cuda.is_available() + ["mps"]*torch.backends.mps.is_available()


@pytest.fixture(params=devices)
def device(request):
    "Each device of this machine in turn."
    return request.param


@pytest.fixture(autouse=True)
def seeded():
    "The same random numbers for every run of a test."
    torch.manual_seed(0)
