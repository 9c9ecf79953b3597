"""The compiled InfoNCE against autograd in float64."""

import pytest
import torch

from thousandfold.models import compiled_info_nce, compiled_kernels
from thousandfold.models.compiled_info_nce import info_nce_kernels
from thousandfold.models.contrastive_critic import EMBEDDING_DIM, contrast, contrastive_loss

CPU = torch.device("cpu")


def make(rows: int, columns: int | None = None, spread: float = 1.0) -> list[torch.Tensor]:
    """Embeddings of rows, and of columns of which the first are not far from them."""
    generator = torch.Generator().manual_seed(rows)
    own = torch.randn(rows, EMBEDDING_DIM, generator=generator)
    others = torch.randn(columns or rows, EMBEDDING_DIM, generator=generator)
    others[:rows] = own + 0.5 * others[:rows]
    return [(spread * each).requires_grad_() for each in (own, others)]


def loss_and_gradients(given, **options):
    """The loss, the metrics and the gradients of all that is given."""
    own = [each.detach().clone().requires_grad_() for each in given]
    no_goal = {} if len(own) == 2 else {"no_goal": own[2]}
    loss, metrics = contrastive_loss(own[0], own[1], **no_goal, **options)
    loss.backward()
    return loss.detach(), metrics, [each.grad for each in own]


def assert_agrees_with_float64(given, **options):
    loss, metrics, gradients = loss_and_gradients(given, **options)
    expected = loss_and_gradients([each.double() for each in given], **options)
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=1e-6)
    assert metrics.keys() == expected[1].keys()
    for name, value in metrics.items():
        torch.testing.assert_close(value.double(), expected[1][name].double(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, expected[2], strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours.double() / scale, theirs / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["forward", "backward", "symmetric"])
@pytest.mark.parametrize("rows", [1, 2, 17, 256, 1000])
def test_loss_metrics_and_gradients_agree_with_float64(rows: int, variant: str, threads: int):
    assert_agrees_with_float64(make(rows), variant=variant)


@pytest.mark.parametrize("lost", [0, 1, 3])
@pytest.mark.parametrize("rows", [2, 17, 256])
def test_lost_rows_agree_with_float64(rows: int, lost: int):
    no_goal = torch.randn(EMBEDDING_DIM, generator=torch.Generator().manual_seed(1))
    assert_agrees_with_float64([*make(rows), no_goal], lost=torch.arange(rows) < lost)


@pytest.mark.parametrize("spread", [1e-6, 1e-2, 30.0, 1e6])
def test_near_and_far_pairs_agree_with_float64(spread: float):
    assert_agrees_with_float64(make(40, spread=spread))


@pytest.mark.parametrize(("distance", "error"), [(1e-1, 1e-5), (1e-2, 1e-4), (1e-3, 1e-3)])
def test_positives_near_each_other_and_far_from_the_rest_keep_their_gradient(distance: float, error: float):
    rows = torch.randn(256, EMBEDDING_DIM, generator=torch.Generator().manual_seed(0))
    columns = rows + distance * torch.randn(256, EMBEDDING_DIM, generator=torch.Generator().manual_seed(1))
    found = torch.cat(loss_and_gradients([rows, columns])[2]).double()
    expected = torch.cat(loss_and_gradients([rows.double(), columns.double()])[2])
    assert (found - expected).norm() < error * expected.norm()


def test_positives_that_there_are_not_are_refused():
    rows, columns = make(20)
    with pytest.raises(ValueError, match="no positives from column 1 on"):
        contrast(rows, columns, "norm", first=1)


def test_rows_of_a_part_are_contrasted_with_all_columns(threads: int):
    rows, columns = make(20, 50)
    moved = columns.roll(13, 0)
    found = contrast(rows, moved, "norm", first=13)
    expected = contrast(rows.double(), moved.double(), "norm", first=13)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5)


def test_equal_pairs_have_no_gradient_between_them():
    rows, _ = make(20)
    assert_agrees_with_float64([rows, rows])
    same = torch.ones(20, EMBEDDING_DIM)
    _, metrics, gradients = loss_and_gradients([same, same])
    assert all(torch.equal(each, torch.zeros_like(each)) for each in gradients)
    assert metrics["positive_logit"] == 0.0
    assert metrics["categorical_accuracy"] == 0.0  # nothing is told apart


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e25])
@pytest.mark.parametrize("part", [0, 1])
def test_what_is_no_number_or_too_large_never_gives_a_finite_loss(bad: float, part: int):
    given = make(20)
    with torch.no_grad():
        given[part][3, 5] = bad
    loss, metrics, gradients = loss_and_gradients(given)
    assert not loss.isfinite() and not metrics["info_nce"].isfinite()
    if bad != 1e25:
        assert gradients[0].isnan().any() and gradients[1].isnan().any()


def test_a_result_does_not_depend_on_who_computes_a_part(threads: int):
    first, *again = (loss_and_gradients(make(101)) for _ in range(5))
    for loss, metrics, gradients in again:
        assert torch.equal(loss, first[0]) and metrics == first[1]
        assert all(torch.equal(a, b) for a, b in zip(gradients, first[2], strict=True))


def test_a_second_backward_pass_is_refused():
    loss, _ = contrastive_loss(*make(8))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass"):
        loss.backward()


def test_embeddings_may_lie_in_any_order():
    rows, columns = make(20)
    turned = [each.detach().t().contiguous().t() for each in (rows, columns)]
    loss, _, gradients = loss_and_gradients(turned)
    expected = loss_and_gradients([rows, columns])
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected[2], strict=True))


def test_what_cannot_be_compiled_is_left_to_torch(monkeypatch: pytest.MonkeyPatch, threads: int):
    assert info_nce_kernels(CPU, torch.float32, EMBEDDING_DIM) is not None
    assert info_nce_kernels(torch.device("cuda"), torch.float32, EMBEDDING_DIM) is None
    assert info_nce_kernels(CPU, torch.float64, EMBEDDING_DIM) is None
    monkeypatch.setattr(compiled_kernels, "_openmp", lambda: None)
    assert (info_nce_kernels(CPU, torch.float32, EMBEDDING_DIM) is not None) == (threads == 1)


def test_where_llvm_does_not_compile_torch_computes_the_same(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("no such processor")

    expected = loss_and_gradients(make(17))
    compiled_info_nce._compiled.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(compiled_info_nce, "CompiledInfoNCE", broken)
        assert info_nce_kernels(CPU, torch.float32, EMBEDDING_DIM) is None
        loss, metrics, gradients = loss_and_gradients(make(17))
    compiled_info_nce._compiled.cache_clear()
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(metrics, expected[1])
    torch.testing.assert_close(gradients, expected[2], rtol=1e-4, atol=1e-6)
