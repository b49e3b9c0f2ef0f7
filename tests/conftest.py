"""What every test may ask for."""
import sys
from pathlib import Path

import pytest
import torch

root = Path(__file__).parents[1]
sys.path[:0] = [str(root/"web"), str(root)]   # where the tools for pages lie, and `bench`

cuda = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
devices = ["cpu", cuda] + ["mps"]*torch.backends.mps.is_available()


@pytest.fixture(params=devices, scope="session")
def device(request):
    "Each device in turn; the tests for CUDA are listed as skipped where there is none."
    return request.param


@pytest.fixture(scope="module")
def on_device(device):
    "Whatever the tests of a file make is made on each device in turn: `pytestmark = pytest.mark.usefixtures(\"on_device\")`."
    with torch.device(device): yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    "Skip what asks an MPS device for float64, which it has not."
    try: return (yield)
    except TypeError as error:
        if "MPS" in str(error) and "float64" in str(error): pytest.skip("no float64 there")
        raise


@pytest.fixture(autouse=True)
def seeded():
    "The same random numbers for every run of a test."
    torch.manual_seed(0)
