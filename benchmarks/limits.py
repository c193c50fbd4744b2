"""The least time that a step could take on this machine: its memory traffic and its arithmetic, at measured rates.

    python benchmarks/limits.py          # the two rates, seconds

`step.py` prints the limit beside what it measures.
"""

import statistics
import time

import torch

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
ROUNDS = 9


def seconds(call) -> float:
    """The median of some calls, after one that warms up."""
    times = []
    for _ in range(ROUNDS + 1):
        if GPU:
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if GPU:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def bandwidth(size: int = 2**30 if GPU else 2**28) -> float:
    """Bytes per second between memory and all cores, reads and writes: a copy of more than any cache holds."""
    source = torch.empty(size, dtype=torch.uint8, device=DEVICE).fill_(1)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source))


def matrix_rate(dtype: torch.dtype, size: int = 8192 if GPU else 1536) -> float:
    """Floating-point operations per second of a square matrix product on all cores."""
    left, right = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right)


def of_step(
    config, parameters: int, number: int, completions: int, generations: int, prompt: float, completion: float,
    longest: float, rate: float, traffic: float,
) -> dict[str, float]:  # fmt: skip
    """Seconds that a step takes at least, by part.

    Decoding reads the weights once a token and each row's keys and values so far; training takes six operations a
    parameter and token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1), two of them forward. Each group's prompt is
    read once and nothing is computed twice; attention's own products, the optimizer and the rewards are left out.

    Args:
        config: the model's.
        parameters: how many it has.
        number: bytes of one in what is computed.
        completions: those on this device.
        generations: of one prompt.
        prompt, completion, longest: tokens of a mean prompt, of a mean completion, of the longest.
        rate, traffic: see `matrix_rate` and `bandwidth`.
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * number
    read = longest * parameters * number + completions * completion * (prompt + completion / 2) * of_token
    tokens = completions * (prompt / generations + completion)
    return {
        "generation": max(read / traffic, 2 * parameters * tokens / rate),
        "training": 6 * parameters * tokens / rate,
    }


if __name__ == "__main__":
    dtype = torch.bfloat16 if GPU else torch.float32
    device = torch.cuda.get_device_name() if GPU else f"CPU, {torch.get_num_threads()} threads"
    print(f"{device}: {bandwidth() / 1e9:,.0f} GB/s, {matrix_rate(dtype) / 1e12:,.3g} TFLOP/s in {dtype}")
