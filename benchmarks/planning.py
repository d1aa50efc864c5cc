"""How far the plan of `prefdata curves` can be trusted: pilots of few draws, and what many draws bring, by law.

    python benchmarks/planning.py                          # ways to go on, over all laws
    python benchmarks/planning.py --laws                   # the way that is taken, law by law
    python benchmarks/planning.py --run RUN --scorer NAME  # on a run: pilots from its draws, the truth from all

A pilot has P prompts with N draws each and tells the best of 2N, 4N and 8N. The bias is that of its number, as a share
of what the best of so many gains over one draw; coverage is how often its 95% interval holds the true number (over all
prompts that there could be; on a run, over its prompts); the width is the interval's, as a share of the gain.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np

from prefdata.stats import best_of_n
from prefdata.stats.bootstrap import bootstrap_intervals
from prefdata.stats.extrapolation import extrapolate, fit_points

DRAWS = [1, 2, 4, 8, 16, 32, 64, 128]
"""The n at which the truth of a law is needed."""

TIMES = (2, 4, 8)
"""How many times the pilot's N is told."""

LAWS: dict[str, Callable] = {
    "normal": lambda r, p, n: r.normal(size=(p, n)),
    "normal, prompts differ by 1": lambda r, p, n: r.normal(size=(p, 1)) + r.normal(size=(p, n)),
    "normal, prompts differ by 3": lambda r, p, n: 3 * r.normal(size=(p, 1)) + r.normal(size=(p, n)),
    "normal, spreads differ": lambda r, p, n: r.gamma(2, 0.5, size=(p, 1)) * r.normal(size=(p, n)),
    "ratings 1 to 5, prompts differ": lambda r, p, n: 1.0 + r.binomial(4, r.beta(1.5, 1.5, size=(p, 1)), size=(p, n)),
    "success 5%": lambda r, p, n: 1.0 * (r.random((p, n)) < 0.05),
    "success 5%, in tens": lambda r, p, n: 10.0 * (r.random((p, n)) < 0.05),
    "success Beta(1, 19)": lambda r, p, n: 1.0 * (r.random((p, n)) < r.beta(1, 19, size=(p, 1))),
    "success Beta(0.3, 3), in tens": lambda r, p, n: 10.0 * (r.random((p, n)) < r.beta(0.3, 3, size=(p, 1))),
    "success 0 or 10%, half each": lambda r, p, n: 1.0 * (r.random((p, n)) < 0.1 * (r.random((p, 1)) < 0.5)),
    "exponential": lambda r, p, n: r.exponential(size=(p, n)),
    "lognormal": lambda r, p, n: r.lognormal(size=(p, n)),
    "Pareto 3": lambda r, p, n: r.pareto(3, size=(p, n)),
    "sigmoid of normal": lambda r, p, n: 1 / (1 + np.exp(-2 * r.normal(size=(p, 1)) - 2 * r.normal(size=(p, n)))),
    "uniform": lambda r, p, n: r.random((p, n)),
}
"""Scores of p prompts with n draws each."""


class Doublings:
    """The gain of a doubling shrinks by the ratio of the last two, never grows, and ends at the highest score."""

    def __init__(self, scores: np.ndarray) -> None:
        self.known, self.top = scores.shape[1], scores.max()
        self.values = best_of_n.expected_max(scores, [self.known // 4, self.known // 2, self.known])

    def __call__(self, means: np.ndarray, ns: list[int]) -> tuple[np.ndarray, ...]:
        before, gain = (means[:, i + 1] - means[:, i] for i in (0, 1))
        ratio = np.clip(np.divide(gain, before, out=np.zeros_like(gain), where=before > 0), 0, 1 - 1e-9)
        more = [gain * ratio * (1 - ratio ** math.log2(n / self.known)) / (1 - ratio) for n in ns]
        return (np.minimum(means[:, 2:] + np.stack(more, axis=1), self.top),) * 3


class Ratios:
    """The gain of a doubling shrinks by a ratio that itself changes as the last two did; no ceiling."""

    def __init__(self, scores: np.ndarray) -> None:
        self.known = scores.shape[1]
        self.values = best_of_n.expected_max(scores, [max(1, self.known // times) for times in (8, 4, 2, 1)])

    def __call__(self, means: np.ndarray, ns: list[int]) -> tuple[np.ndarray, ...]:
        def over(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
            return np.minimum(np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0), 2)

        gains = np.maximum(np.diff(means, axis=1), 0)
        last, gain, tops = over(gains[:, 2], gains[:, 1]), gains[:, 2], [means[:, 3]]
        change = over(last, over(gains[:, 1], gains[:, 0])) if self.known >= 8 else np.ones_like(last)
        ratio = last
        for _ in range(3):
            ratio = np.minimum(ratio * change, np.maximum(last, 1))
            gain = gain * ratio
            tops.append(tops[-1] + gain)
        return (np.stack([tops[round(math.log2(n / self.known))] for n in ns], axis=1),) * 3


class Continued:
    """What `prefdata curves` does: likely, at least and at most."""

    def __init__(self, scores: np.ndarray) -> None:
        self.known, self.top = scores.shape[1], scores.max()
        self.values = best_of_n.expected_max(scores, fit_points(self.known))

    def __call__(self, means: np.ndarray, ns: list[int]) -> tuple[np.ndarray, ...]:
        return extrapolate(means, self.top, self.known, ns)


class Likely(Continued):
    """The same, with the interval of the likely number alone."""

    def __call__(self, means: np.ndarray, ns: list[int]) -> tuple[np.ndarray, ...]:
        return (super().__call__(means, ns)[0],) * 3


WAYS = {
    "ratios of ratios": Ratios,
    "ratio, with a ceiling": Doublings,
    "likely alone": Likely,
    "least to most": Continued,
}


def told(way: type, scores: np.ndarray, ns: list[int]) -> np.ndarray:
    """What a pilot tells of each n: value, low, high, shape (3, K)."""
    made = way(scores)
    value = made(made.values.mean(axis=0)[None, :], ns)[0][0]
    low, high = bootstrap_intervals(made.values, of=lambda means: np.concatenate(made(means, ns)[1:], axis=1))
    return np.stack([value, np.minimum(low[: len(ns)], value), np.maximum(high[len(ns) :], value)])


def judged(pilots: list[np.ndarray], truth: dict[int, float], way: type) -> np.ndarray:
    """Bias, coverage and width by n, shape (3, K), over pilots of one size."""
    ns = [pilots[0].shape[1] * times for times in TIMES if pilots[0].shape[1] * times in truth]
    exact = np.array([truth[n] for n in ns])
    found = np.array([told(way, scores, ns) for scores in pilots])
    holds = (found[:, 1] <= exact + 1e-9) & (exact - 1e-9 <= found[:, 2])
    gain = exact - truth[1]
    return np.stack([(found[:, 0] - exact).mean(axis=0) / gain, holds.mean(axis=0),
                     (found[:, 2] - found[:, 1]).mean(axis=0) / gain])  # fmt: skip


def exact_of(law: Callable) -> dict[int, float]:
    """E[max of n] of a law, from 40,000 prompts with 1,024 draws."""
    made = [best_of_n.expected_max(law(np.random.default_rng(i), 2000, 1024), DRAWS).mean(axis=0) for i in range(20)]
    return dict(zip(DRAWS, np.mean(made, axis=0).tolist(), strict=True))


def line(*cells: object) -> None:
    """Print a row of a table; arrays as percentages."""
    said = (" / ".join(f"{v:.0%}" for v in cell) if isinstance(cell, np.ndarray) else str(cell) for cell in cells)
    print(f"| {' | '.join(said)} |", flush=True)


def head(*names: str) -> None:
    line(*names)
    line("---", *["--:"] * (len(names) - 1))


def drawn(law: Callable, prompts: int, known: int, pilots: int) -> list[np.ndarray]:
    return [law(np.random.default_rng((i, 1)), prompts, known) for i in range(pilots)]


def by_law(sizes: list[tuple[int, ...]], pilots: int) -> None:
    head("law", "P x N", "bias", "coverage", "width")
    for name, law in LAWS.items():
        truth = exact_of(law)
        for size in sizes:
            line(name, "{} x {}".format(*size), *judged(drawn(law, *size, pilots), truth, Continued))


def by_way(sizes: list[tuple[int, ...]], pilots: int) -> None:
    truths = {name: exact_of(law) for name, law in LAWS.items()}
    head(
        "way",
        "P x N",
        "largest bias",
        "mean coverage",
        "least coverage",
        f"laws of {len(LAWS)} at 90% or more",
        "width",
    )
    for size in sizes:
        samples = {name: drawn(law, *size, pilots) for name, law in LAWS.items()}
        for way, kind in WAYS.items():
            found = np.array([judged(samples[name], truths[name], kind) for name in LAWS])
            bias, covers, width = found.transpose(1, 0, 2)
            largest = np.take_along_axis(bias, np.abs(bias).argmax(axis=0)[None, :], axis=0)[0]
            enough = " / ".join(str(count) for count in (covers >= 0.9).sum(axis=0))
            line(way, "{} x {}".format(*size), largest, covers.mean(axis=0), covers.min(axis=0), enough,
                 np.median(width, axis=0))  # fmt: skip


def on_a_run(run: str, scorer: str) -> None:
    """Pilots of 60 prompts and N draws from a run whose prompts have many, by temperature."""
    from prefdata import Run
    from prefdata.explore.curves.groups import group, read

    groups, _, _ = group(read(Run(run), scorer, None, (), False)[0], "temperature", None, scorer)
    head("way", "pilots", "N", "bias", "coverage", "width")
    for draws in groups:
        scores = draws.values["score"].reshape(draws.sizes.size, draws.known)
        ns = [n for n in DRAWS if n <= draws.known]
        truth = dict(zip(ns, best_of_n.expected_max(scores, ns).mean(axis=0).tolist(), strict=True))
        for known in (4, 8, 16):
            starts = range(0, draws.known - known + 1, known)
            blocks = [scores[at : at + 60] for at in range(0, len(scores) - 59, 60)]
            pilots = [block[:, start : start + known] for block in blocks for start in starts]
            for way, kind in WAYS.items():
                line(way, f"{len(pilots)}, {draws.group}", known, *judged(pilots, truth, kind))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--laws", action="store_true")
    parser.add_argument("--pilots", type=int, default=100)
    parser.add_argument("--sizes", default="60x4,60x8,60x16,500x4,500x8,500x16")
    parser.add_argument("--run")
    parser.add_argument("--scorer", default="reward")
    given = parser.parse_args()
    if given.run:
        on_a_run(given.run, given.scorer)
    else:
        sizes = [tuple(int(part) for part in size.split("x")) for size in given.sizes.split(",")]
        (by_law if given.laws else by_way)(sizes, given.pilots)


if __name__ == "__main__":
    main()
