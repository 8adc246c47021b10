"""Losses on logits: Hinton's, decoupled (DKD), relational (DIST) and one-for-all (OFA)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kdmri.distillation.precision import at_least_float32, teacher_side


def kd_loss(zs: Tensor, zt: Tensor, *, temperature: float = 4.0, standardize: bool = False) -> Tensor:
    """Hinton's distillation loss: T² · KL(softmax(zt / T) ‖ softmax(zs / T)), mean over the batch.

    The gradient of the divergence shrinks with 1 / T², so the factor T² keeps its size beside the cross-entropy as the
    temperature changes. Computed in float32, and no gradient flows into the teacher. One image at a time: the value
    does not depend on how a batch is divided.

    Reference: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531), §2.

    Args:
        zs: student logits (B, C).
        zt: teacher logits (B, C).
        temperature: T > 0.
        standardize: apply `standardize_logits` to both sides first; its paper uses T = 2 and weight 9.

    Returns:
        A scalar in nats, 0 where the two softmaxes agree.

    Raises:
        ValueError: shapes differ or the temperature is not positive.

    Example:
        >>> round(kd_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), temperature=1.0).item(), 4)
        0.4621
    """
    with torch.autocast(zs.device.type, enabled=False):
        zs, zt = _tempered(zs, zt, temperature, standardize)
        return _divergence(F.log_softmax(zs, dim=1), F.log_softmax(zt, dim=1)) * temperature**2


def dkd_loss(
    zs: Tensor,
    zt: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    temperature: float = 4.0,
    standardize: bool = False,
) -> Tensor:
    """Decoupled distillation: α · T² · KL(b_t ‖ b_s) + β · T² · KL(q_t ‖ q_s), mean over the batch.

    With p = softmax(z / T) and y the label, b = (p_y, 1 − p_y) is how sure the model is of the label, and q is the
    softmax over the other classes alone. Hinton's loss is KL(b_t ‖ b_s) + (1 − p_t,y) · KL(q_t ‖ q_s): its second part
    fades where the teacher is sure, and here it does not. T² keeps the gradient's size as T grows. The logarithms come
    from `log_softmax` and `logsumexp`, because log(softmax) is infinite once a probability underflows.

    Reference: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (arXiv 2203.08679), eq. 7. The paper has
    β = 8 for 100 classes; with three classes q has two entries, so start at 1, with a warm-up.

    Args:
        zs: student logits (B, C), C ≥ 2.
        zt: teacher logits (B, C).
        labels: (B,) class indices. Mixed labels (mixup, CutMix) have no single y: use `kd_loss` there.
        alpha: weight of the label's part, ≥ 0.
        beta: weight of the other classes' part, ≥ 0. With C = 2 that part is 0.
        temperature: T > 0.
        standardize: apply `standardize_logits` to both sides first.

    Returns:
        A scalar in nats, 0 where the two softmaxes agree.

    Raises:
        ValueError: shapes differ, labels are not class indices, or a number is out of range.

    Example:
        >>> zs, zt = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
        >>> round(dkd_loss(zs, zt, torch.tensor([0]), temperature=1.0).item(), 4)
        0.3877
    """
    _refuse_negative(alpha=alpha, beta=beta)
    _check_labels(labels, zs)
    with torch.autocast(zs.device.type, enabled=False):
        zs, zt = _tempered(zs, zt, temperature, standardize)
        # Columns of the other classes, without a boolean index, which would wait for the GPU.
        label_reached = _of_label(labels, zt).cumsum(1)[:, :-1].long()
        others = torch.arange(zs.shape[1] - 1, device=zs.device) + label_reached
        target = _divergence(_log_label_or_not(zs, labels, others), _log_label_or_not(zt, labels, others))
        rest = _divergence(F.log_softmax(zs.gather(1, others), dim=1), F.log_softmax(zt.gather(1, others), dim=1))
        return (alpha * target + beta * rest) * temperature**2


def dist_loss(
    zs: Tensor,
    zt: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    standardize: bool = False,
) -> Tensor:
    """DIST: β · (1 − ρ over the classes, mean over images) + γ · (1 − ρ over the batch, mean over classes).

    ρ is Pearson's correlation between student and teacher probabilities, softmax(z / T). It asks for the same relation
    between classes (of an image) and between images (for a class), not for the same probabilities, which suits a
    teacher much stronger than its student. There is no T²: a correlation does not shrink as T grows. (The published
    code multiplies by T² nevertheless; at its default T = 1 the two are one.)

    Two limits. With three classes the first term hardly sees confidence. And a batch on which one side's probabilities
    are constant (saturated on one class) has no correlation: the second term is 1 there, without gradient. A squared
    length gets 1e-8 added, so a zero-initialised head has finite gradients; with the published code's epsilon the same
    vectors count as constant.

    The γ term depends on the batch: gather both logits with `gather_with_gradient` first on several processes. Under
    gradient accumulation, relations do not cross micro-batches.

    Reference: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022 (arXiv 2205.10536), eq. 6–9.

    Args:
        zs: student logits (B, C), B ≥ 2 and C ≥ 2.
        zt: teacher logits (B, C).
        beta: weight of the term over classes, ≥ 0; the paper takes 1 or 2.
        gamma: weight of the term over the batch, ≥ 0; the paper takes 1 or 2.
        temperature: T > 0; the paper takes 1 to 4.
        standardize: apply `standardize_logits` to both sides first.

    Returns:
        A scalar without unit, from 0 (for equal probabilities that vary) to 2 β + 2 γ.

    Raises:
        ValueError: shapes differ, fewer than two images or classes, or a number out of range.

    Example:
        >>> zs = torch.tensor([[2.0, 0.0], [0.0, 2.0]])  # probabilities vary over classes and images
        >>> round(dist_loss(zs, 3 * zs).item(), 4), round(dist_loss(zs, zs.flip(0)).item(), 4)  # the same, the opposite
        (0.0, 4.0)
    """
    _refuse_negative(beta=beta, gamma=gamma)
    with torch.autocast(zs.device.type, enabled=False):
        zs, zt = _tempered(zs, zt, temperature, standardize)
        if len(zs) < 2:
            raise ValueError(
                "dist_loss correlates over the batch and needs at least 2 images, got 1; use a larger batch, or "
                "drop_last if the last one is short"
            )
        ps, pt = zs.softmax(1), zt.softmax(1)
        return beta * (1 - _correlation(ps, pt, dim=1).mean()) + gamma * (1 - _correlation(ps, pt, dim=0).mean())


def ofa_loss(zs: Tensor, zt: Tensor, labels: Tensor, *, gamma: float = 1.5, standardize: bool = False) -> Tensor:
    """OFA: − Σ_c [(p_t,c + 1_{c=y})^γ − 1_{c=y}] · log p_s,c, mean over the batch.

    The logits of a student's exit stand in for its features, because the trace of an architecture is gone there. The
    label's weight grows with the teacher's confidence, (1 + p_t,y)^γ − 1; γ = 1 is the plain cross-entropy with the
    teacher's probabilities. The subtracted 1 is the label's own cross-entropy, which the total loss has already. This
    is the published code's form; the paper writes the label's term with its cross-entropy and leaves γ off the other
    classes. T = 1, so no T². `log_softmax` replaces the published log(softmax), which underflows.

    It is a cross-entropy: positive, and not 0 for equal logits.

    Reference: Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    NeurIPS 2023 (arXiv 2310.19444), eq. 5.

    Args:
        zs: student logits (B, C), C ≥ 2, of the classifier or of an exit behind a stage.
        zt: teacher logits (B, C).
        labels: (B,) class indices. Mixed labels (mixup, CutMix) have no single y: use `kd_loss` there.
        gamma: γ > 0; the paper takes 1 to 1.5.
        standardize: apply `standardize_logits` to both sides first.

    Returns:
        A scalar in nats, ≥ 0.

    Raises:
        ValueError: shapes differ, labels are not class indices, or γ is not positive.

    Example:
        >>> know_nothing = torch.zeros(1, 2)
        >>> round(ofa_loss(know_nothing, know_nothing, torch.tensor([0]), gamma=1.0).item(), 4)  # log 2
        0.6931
    """
    _refuse_not_positive("gamma", gamma)
    _check_labels(labels, zs)
    with torch.autocast(zs.device.type, enabled=False):
        zs, zt = _tempered(zs, zt, 1.0, standardize)
        is_label = _of_label(labels, zt)
        weight = (zt.softmax(1) + is_label) ** gamma - is_label
        return -(weight * F.log_softmax(zs, dim=1)).sum(1).mean()


def standardize_logits(logits: Tensor) -> Tensor:
    """Each image's logits with mean 0 and standard deviation 1 over the classes, so that only their shape is compared.

    (z − mean) / √(var + 1e-8), with the variance over C − 1 as in the published code (the paper's algorithm divides by
    C). All confidence is lost: with three classes (10, 0, 0) and (.01, 0, 0) become one target. For ablations.

    Reference: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024 (arXiv 2403.01427), algorithm 1.

    Args:
        logits: (B, C), C ≥ 2.

    Returns:
        (B, C) in float32 or float64; constant logits become 0.

    Raises:
        ValueError: another shape, or one class.

    Example:
        >>> standardize_logits(torch.tensor([[1.0, 2.0, 3.0]])).round(decimals=3).tolist()
        [[-1.0, 0.0, 1.0]]
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"expected logits (B, C) of at least two classes, got {tuple(logits.shape)}")
    logits = at_least_float32(logits)
    variance, mean = torch.var_mean(logits, dim=1, keepdim=True)
    return (logits - mean) / (variance + 1e-8).sqrt()


def _tempered(zs: Tensor, zt: Tensor, temperature: float, standardize: bool) -> tuple[Tensor, Tensor]:
    if zs.shape != zt.shape or zs.ndim != 2 or len(zs) == 0 or zs.shape[1] < 2:
        raise ValueError(
            "expected logits of one shape (B, C) with an image and at least two classes, got student "
            f"{tuple(zs.shape)}, teacher {tuple(zt.shape)}"
        )
    _refuse_not_positive("temperature", temperature)
    zs, zt = at_least_float32(zs), teacher_side(zt)
    if standardize:
        zs, zt = standardize_logits(zs), standardize_logits(zt)
    return zs / temperature, zt / temperature


def _divergence(log_ps: Tensor, log_pt: Tensor) -> Tensor:
    return F.kl_div(log_ps, log_pt, log_target=True, reduction="batchmean")


def _log_label_or_not(z: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    log_p = F.log_softmax(z, dim=1)
    return torch.cat([log_p.gather(1, labels[:, None]), log_p.gather(1, others).logsumexp(1, keepdim=True)], dim=1)


def _correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    # The epsilon stands inside the root, where it bounds the gradient at a constant vector too.
    return (a * b).sum(dim) / ((a.square().sum(dim) + 1e-8) * (b.square().sum(dim) + 1e-8)).sqrt()


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        whole = not labels.is_floating_point() and labels.shape == logits.shape[:1]
        hint = "call .long() on them" if whole else "mixed labels have no single class, use kd_loss with them"
        raise ValueError(
            f"expected int64 class indices of shape ({len(logits)},), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}; {hint}"
        )


def _of_label(labels: Tensor, logits: Tensor) -> Tensor:
    """1 for the label's class and 0 for the others, (B, C), in the logits' type."""
    try:
        return torch.zeros_like(logits).scatter_(1, labels[:, None], 1.0)
    except (IndexError, RuntimeError) as error:  # to ask before would wait for the device at every step
        if "out of bounds" not in str(error):
            raise
        raise ValueError(
            f"labels go from {labels.min().item()} to {labels.max().item()}, but the logits have {logits.shape[1]} "
            f"classes, 0 to {logits.shape[1] - 1}; leave out rows without a label"
        ) from error


def _refuse_negative(**weights: float) -> None:
    for name, value in weights.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; it must be a finite number of at least 0")


def _refuse_not_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; it must be a finite number above 0")
