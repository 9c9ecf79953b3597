"""The products of a Dense layer, by every library, and which one is chosen."""

import pytest
import torch

from thousandfold.models import dense_products as module
from thousandfold.models.dense_products import TORCH_PRODUCTS, OneDnnProducts, dense_products, has_onednn

CPU = torch.device("cpu")
ZEN_5 = {"vendor_id": "AuthenticAMD", "cpu family": "26", "flags": "fpu avx2 avx512f"}
needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch comes without oneDNN")


@pytest.fixture(autouse=True)
def fresh_choice():
    module._onednn.cache_clear()
    yield
    module._onednn.cache_clear()


@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("library", ["torch", pytest.param("onednn", marks=needs_onednn)])
def test_products_agree_with_float64(library: str, rows: int):
    products = TORCH_PRODUCTS if library == "torch" else OneDnnProducts()
    inputs, gradient, weight = torch.randn(rows, 48), torch.randn(rows, 48), torch.randn(48, 48)
    given = [each.clone() for each in (inputs, gradient, weight)]
    exact_inputs, exact_gradient, exact_weight = (each.double() for each in given)
    kernel_gradient = torch.full_like(weight, torch.nan)
    products.weight_gradient(gradient, inputs, kernel_gradient)
    found = {
        "outputs": products.outputs(inputs, weight),
        "input_gradient": products.input_gradient(gradient, weight, torch.full_like(inputs, torch.nan)),
        "weight_gradient": kernel_gradient,
    }
    expected = {
        "outputs": exact_inputs @ exact_weight.T,
        "input_gradient": exact_gradient @ exact_weight,
        "weight_gradient": exact_gradient.T @ exact_inputs,
    }
    for name, product in found.items():
        torch.testing.assert_close(product.double(), expected[name], rtol=1e-5, atol=1e-4)
    assert all(
        torch.equal(now, before) for now, before in zip((inputs, gradient, weight), given, strict=True)
    )


def test_rounded_products_become_float32_gradients():
    inputs, gradient = (torch.randn(8, 16).to(torch.bfloat16) for _ in range(2))
    out = torch.empty(16, 16)
    TORCH_PRODUCTS.weight_gradient(gradient, inputs, out)
    assert torch.equal(out, (gradient.t() @ inputs).float())


@needs_onednn
def test_onednn_is_chosen_where_it_is_the_faster_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_processor", lambda: ZEN_5)
    assert isinstance(dense_products(CPU, torch.float32, 256), OneDnnProducts)
    for device, dtype, width in (
        (torch.device("cuda"), torch.float32, 256),
        (CPU, torch.bfloat16, 256),
        (CPU, torch.float64, 256),
        (CPU, torch.float32, 64),
    ):
        assert dense_products(device, dtype, width) is TORCH_PRODUCTS


@pytest.mark.parametrize(
    "processor",
    [
        {},
        ZEN_5 | {"vendor_id": "GenuineIntel"},
        ZEN_5 | {"cpu family": "25"},
        ZEN_5 | {"flags": "fpu avx2"},
    ],
)
def test_other_processors_compute_with_torchs_own(processor: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_processor", lambda: processor)
    assert dense_products(CPU, torch.float32, 256) is TORCH_PRODUCTS


def test_the_first_processor_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path):
    listing = tmp_path / "cpuinfo"
    listing.write_text(
        "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nflags\t\t: avx512f\n\nvendor_id\t: other\n"
    )
    monkeypatch.setattr(module, "Path", lambda name: listing)
    assert module._amd_family(module._processor()) == 26
    listing.unlink()
    assert module._processor() == {}
