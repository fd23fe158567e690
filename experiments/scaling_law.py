"""The law L(N, D) = E + A / N^a + B / D^b  (Hoffmann et al. 2022, arXiv:2203.15556): fit, intervals, use.

N: parameters, D: tokens, L: loss in nats a token. A law is an array of its five CONSTANTS.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from support.cli import atomic_write

CONSTANTS = ("E", "A", "a", "B", "b")
DRAWS = 1000  # laws that the intervals are taken from
HUBER = 0.005  # a run further off the law than this share of its loss counts less: it may have had bad luck


def loss_of(law: np.ndarray, sizes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The law: L(N, D) = E + A / N^a + B / D^b. law (5,), or many of them (5, laws)."""
    E, A, a, B, b = law
    return E + A / sizes**a + B / tokens**b


def fit(sizes: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The law (5,) of least Huber loss of relative errors, nearly those of log L (arXiv:2203.15556, eq. 3).

    For given a and b the law is linear in E, A and B. So only a and b are searched, on a grid that narrows
    around its best point: no starting points, and no optimizer that may stop early, as theirs did (Besiroglu
    et al. 2024, arXiv:2404.10102). The Huber loss is least squares with weights that every round renews.
    """
    logs = np.stack([np.zeros(len(losses)), np.log(sizes), np.log(tokens)], axis=-1)  # (runs, 3)
    center = logs.mean(axis=0)
    weights, best, reach = np.ones((len(losses), 1)), np.log([0.4, 0.4]), np.log(5)  # best: log a, log b
    for _ in range(20):
        steps = np.linspace(-reach, reach, 15)
        grid = np.exp(best + np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2))  # (points, 2)
        exponents = np.insert(grid, 0, 0, axis=1)  # (points, 3), those of E, A and B
        columns = np.exp(-exponents[:, None] * (logs - center)) / losses[:, None]  # (points, runs, 3)
        weighted = (columns * weights).transpose(0, 2, 1)
        products, sums = weighted @ columns, weighted.sum(axis=2, keepdims=True)
        constants = np.linalg.solve(products, sums)  # (points, 3, 1)
        negative_E = constants[:, 0, 0] < 0  # there, the best law that is possible has E = 0
        constants[negative_E, 1:] = np.linalg.solve(products[negative_E, 1:, 1:], sums[negative_E, 1:])
        constants[negative_E, 0] = 0
        constants[:, 1:] = np.maximum(constants[:, 1:], 1e-9)  # a point that wants negative A or B fits badly
        errors = columns @ constants - 1  # (points, runs, 1)
        i = (weights * errors**2).sum(axis=(1, 2)).argmin()
        weights = np.minimum(1, HUBER / np.maximum(np.abs(errors[i]), 1e-12))
        best, reach = np.log(grid[i]), 0.6 * reach
    E, A, B = constants[i, :, 0] * np.exp(exponents[i] * center)
    return np.array([E, A, grid[i, 0], B, grid[i, 1]])


def draw_laws(
    law: np.ndarray, sizes: np.ndarray, tokens: np.ndarray, losses: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Laws (5, DRAWS) fitted to the law with new noise, and for each the noise, a factor, of one run more.

    A parametric bootstrap: drawing among so few runs would leave out a whole size now and then. The noise has
    the standard deviation of the residuals, itself drawn, over n - 5 degrees of freedom, as in a t interval.
    """
    random, fitted = np.random.default_rng(seed), loss_of(law, sizes, tokens)
    squares = (np.log(losses / fitted) ** 2).sum()
    deviations = np.sqrt(squares / random.chisquare(len(fitted) - len(law), (DRAWS, 1)))
    noise = np.exp(deviations * random.standard_normal((DRAWS, len(fitted) + 1)))
    laws = [fit(sizes, tokens, fitted * each) for each in tqdm(noise[:, 1:], "intervals", leave=False)]
    return np.array(laws).T, noise[:, 0]


def best_split(law: np.ndarray, k: float, p: float, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """The size N and the tokens D with the least loss of all that take these seconds, if a token takes k N^p.

    There, the derivative by log N is 0: a A / N^a = p b B / D^b. With p = 1 it is eq. 4 of arXiv:2203.15556.
    """
    _, A, a, B, b = law
    size = (a * A / (p * b * B) * (seconds / k) ** b) ** (1 / (a + p * b))
    return size, seconds / (k * size**p)


def bounds(values: np.ndarray, low: str = "from", high: str = "to") -> dict[str, float]:
    """The 95% interval of values (DRAWS,), under these names."""
    return dict(zip((low, high), np.percentile(values, (2.5, 97.5)).tolist()))


def draw(result: dict, longest: float, path: Path) -> None:
    """The loss over tokens and up to `longest` minutes of training: dots as measured, lines by the law."""
    from matplotlib.figure import Figure  # here, because it takes a second

    law, runs = np.array([row["fit"] for row in result["law"]]), result["runs"]
    (predicted,), (k, p) = result["prediction"], result["speed"].values()
    tokens = np.geomspace(min(run["tokens"] for run in runs), predicted["tokens"])
    picture = Figure((16, 7), layout="constrained")
    left, right = picture.subplots(1, 2, sharey=True)
    for width, size in dict.fromkeys((run["d_model"], run["parameters"]) for run in runs):
        label = f"d_model {width}, {size / 1e6:.2f} M parameters"
        (line,) = left.plot(tokens, loss_of(law, size, tokens), label=label)
        right.plot(k * size**p * tokens / 60, loss_of(law, size, tokens), color=line.get_color())
        for run in (run for run in runs if run["d_model"] == width):
            left.plot(run["tokens"], run["loss"], "o", color=line.get_color())
            right.plot(run["tokens"] / run["tokens/s"] / 60, run["loss"], "o", color=line.get_color())
    minutes = np.geomspace(k * runs[0]["parameters"] ** p * tokens[0] / 60, longest)
    best = loss_of(law, *best_split(law, k, p, 60 * minutes))
    right.plot(minutes, best, "k--", label="best size for each time")
    middle, low, high = (predicted[name] for name in ("loss", "from", "to"))
    reach = [[middle - low], [high - middle]]
    left.errorbar(predicted["tokens"], middle, reach, fmt="k*", capsize=4, label="prediction, 95% interval")
    left.set(xscale="log", xlabel="tokens", ylabel="validation loss, nats a token")
    right.set(xscale="log", xlabel="minutes of training")
    for axes in (left, right):
        axes.legend()
    with atomic_write(path) as temporary:
        picture.savefig(temporary, format="png", dpi=100)
