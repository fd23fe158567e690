"""The training loss: output layer and cross-entropy in one, a few hundred positions at a time.

The logits are the largest tensor by far: for 16 windows of 128, 2,048 positions x 5,000 tokens, 41 MB, and
their gradient is as much again. Nobody needs them all at once. OutputLoss computes them in chunks that fit
into the processor's cache, and, while a chunk is there, its share of both gradients. Liger-Kernel
(arXiv:2410.10989, section 3.2) does the same on GPUs.
"""

import torch
from torch import Tensor, nn

CHUNK_ROWS = 512  # positions at a time on a CPU: 10 MB of logits. The default batch of 2,048 is four chunks


class OutputLoss(torch.autograd.Function):
    """The mean of -log softmax(x W^T)[target] over the rows of x, and its gradients for x and W.

    With P = softmax(x W^T), Y = 1 at the targets and 0 elsewhere, and N rows, the gradient for the logits is
    (P - Y) / N. So that for x is (P - Y) W / N, and that for W is (P - Y)^T x / N. Both products are ready
    before backward() asks for them.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int, with_gradients: bool
    ) -> Tensor:
        """x (N, D) in the products' precision, weight (V, D), targets (N,) int64. Returns a tensor ()."""
        N, W = len(targets), weight.to(x.dtype)
        total = weight.new_zeros(())
        x_grad, weight_grad = torch.empty_like(x), torch.zeros_like(weight)
        for start in range(0, N, chunk_rows):
            rows, target = x[start : start + chunk_rows], targets[start : start + chunk_rows, None]
            logits = (rows @ W.T).to(weight.dtype)  # (rows, V)
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            total = total + (log_sum - logits.gather(1, target)).sum()
            if with_gradients:
                P = logits.sub_(log_sum).exp_()  # in place: the logits are not needed any more
                difference = P.scatter_add_(1, target, -torch.ones_like(log_sum)).to(x.dtype)  # P - Y
                x_grad[start : start + chunk_rows] = difference @ W
                weight_grad += difference.T @ rows
        ctx.save_for_backward(x_grad, weight_grad)  # N times the gradients
        ctx.N = N
        return total / N

    @staticmethod
    def backward(ctx, loss_grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x_grad, weight_grad = ctx.saved_tensors
        scale = loss_grad / ctx.N
        return x_grad * scale, weight_grad * scale, None, None, None


class TrainingLoss(nn.Module):
    """loss(input_ids, target_ids), both (B, T): the mean cross-entropy in nats per token, products in dtype.

    A module, since DistributedDataParallel averages the gradients of a module.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, input_ids: Tensor, target_ids: Tensor) -> Tensor:
        device_type = input_ids.device.type
        with torch.autocast(device_type, self.dtype, enabled=self.dtype != torch.float32):
            x = self.model.norm(self.model.residual(input_ids)).flatten(0, 1)  # (B T, D)
        targets = target_ids.flatten()
        # A GPU has room; each call costs time
        chunk_rows = CHUNK_ROWS if device_type == "cpu" else len(targets)
        weight = self.model.embedding.weight
        return OutputLoss.apply(x.to(self.dtype), weight, targets, chunk_rows, torch.is_grad_enabled())
