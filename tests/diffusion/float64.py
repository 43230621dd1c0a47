"""The process in float64 NumPy, written from the papers, one timestep of one example at a time."""

import numpy as np
from scipy import special


def at(betas, t):
    """beta_t, alpha_bar_t and alpha_bar_{t-1}."""
    alphas = 1.0 - np.asarray(betas)[: t + 1]
    return betas[t], np.prod(alphas), np.prod(alphas[:-1])


def q_sample(betas, x_0, t, eps):
    """DDPM eq. 4."""
    _, alpha_bar, _ = at(betas, t)
    return np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps


def posterior(betas, x_0, x_t, t):
    """Mean and log-variance of DDPM eq. 7; at t = 0 the latter is t = 1's."""
    beta, alpha_bar, before = at(betas, t)
    mean = np.sqrt(before) * beta * x_0 + np.sqrt(1 - beta) * (1 - before) * x_t
    beta, later, before = at(betas, max(t, 1))
    return mean / (1 - alpha_bar), np.log((1 - before) / (1 - later) * beta)


def reverse(betas, variance, x_t, t, output):
    """Mean and log-variance of a network that predicts eps, unclipped (DDPM eq. 11)."""
    beta, alpha_bar, _ = at(betas, t)
    eps, raw = (output, None) if variance.startswith("fixed") else np.split(output, 2, axis=-1)
    mean = (x_t - beta / np.sqrt(1 - alpha_bar) * eps) / np.sqrt(1 - beta)
    small = posterior(betas, x_t, x_t, t)[1]
    log_var = {
        "fixed_small": lambda: small,
        "fixed_large": lambda: np.log(beta) if t else small,
        "learned": lambda: raw,
        "learned_range": lambda: (raw + 1) / 2 * np.log(beta) + (1 - raw) / 2 * small,
    }[variance]()
    return mean, log_var + 0.0 * x_t


def gaussian_kl(mean_q, log_var_q, mean_p, log_var_p):
    """Element by element, nats."""
    square = np.exp(log_var_q) + (mean_q - mean_p) ** 2
    return 0.5 * (log_var_p - log_var_q + square / np.exp(log_var_p) - 1)


def decoder(x_0, mean, log_std, levels):
    """log(Phi(b) - Phi(a)) of each element's bin, on the side where it does not cancel.

    At least log 1e-12, as in guided-diffusion.
    """
    half = 1.0 / (levels - 1)
    high = np.where(x_0 > 1 - half / 4, np.inf, (x_0 + half - mean) / np.exp(log_std))
    low = np.where(x_0 < -1 + half / 4, -np.inf, (x_0 - half - mean) / np.exp(log_std))
    swap = low > -high
    low, high = np.where(swap, -high, low), np.where(swap, -low, high)
    log_low, log_high = special.log_ndtr(low), special.log_ndtr(high)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mass = log_high + np.log(-np.expm1(log_low - log_high))
    return np.fmax(log_mass, np.log(1e-12))


def term(betas, variance, x_0, x_t, t, output, levels=256):
    """The bound's term at t of one example, mean over its elements, nats (DDPM eq. 5)."""
    mean, log_var = reverse(betas, variance, x_t, t, output)
    if t == 0:
        return -np.mean(decoder(x_0, mean, 0.5 * log_var, levels))
    return np.mean(gaussian_kl(*posterior(betas, x_0, x_t, t), mean, log_var))
