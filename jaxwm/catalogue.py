"""One row per system: where it lives, where it comes from, and what it claims.

Light: nothing is imported until a row's `load` is called. A claim is checked by
`jaxwm run NAME` and by `tests/test_claims.py` on the row's seeds.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Verdict(NamedTuple):
    """Whether a claim held, and the numbers that decided."""

    holds: bool
    text: str


class Below(NamedTuple):
    """`metric` lies below `limit`, or below `limit` times the metric `of`."""

    metric: str
    limit: float
    of: str | None = None

    def check(self, metrics: Mapping[str, float]) -> Verdict:
        """Looks at one seed's metrics."""
        return _compare(self, "below", metrics, lambda value, limit: value < limit)


class Above(NamedTuple):
    """`metric` lies above `limit`, or above `limit` times the metric `of`."""

    metric: str
    limit: float
    of: str | None = None

    def check(self, metrics: Mapping[str, float]) -> Verdict:
        """Looks at one seed's metrics."""
        return _compare(self, "above", metrics, lambda value, limit: value > limit)


class Between(NamedTuple):
    """`metric` lies strictly between two numbers."""

    metric: str
    low: float
    high: float

    def check(self, metrics: Mapping[str, float]) -> Verdict:
        """Looks at one seed's metrics."""
        value = _number(metrics, self.metric)
        return Verdict(
            self.low < value < self.high,
            f"{self.metric} {value:.4g}, between {self.low:g} and {self.high:g}",
        )


class All(NamedTuple):
    """Every one of several claims."""

    claims: tuple["Claim", ...]

    def check(self, metrics: Mapping[str, float]) -> Verdict:
        """Looks at one seed's metrics."""
        verdicts = [claim.check(metrics) for claim in self.claims]
        return Verdict(
            all(v.holds for v in verdicts), "; ".join(v.text for v in verdicts)
        )


Claim = Below | Above | Between | All


class Entry(NamedTuple):
    """A system: a module with `Config`, a builder called like the row, `experiment`."""

    name: str
    family: str
    source: str
    bundle: str | None  # of jaxwm.types: "WorldModel", "Agent" ...; None for functions
    claim: Claim | None = None
    seeds: int = 3  # on which every claim must hold
    room: str = "recipes"
    summary: str = ""  # one line for `jaxwm list`

    @property
    def module(self) -> str:
        """Dotted name of the module."""
        return f"jaxwm.{self.room}.{self.name}"

    def load(self) -> Any:
        """Imports the module."""
        return importlib.import_module(self.module)

    def builder(self) -> Any:
        """The function that makes the bundle."""
        return getattr(self.load(), self.name)


_WHERE = (
    'Rigter et al., "World Models via Policy-Guided Trajectory Diffusion", TMLR 2024'
)

ENTRIES: tuple[Entry, ...] = (
    Entry(
        "autoregressive_diffusion",
        family="world models",
        source=f"{_WHERE}, baseline",
        bundle="WorldModel",
        room="dynamics",
        summary="a diffusion model of one step, rolled out step by step",
    ),
    Entry(
        "comet",
        family="world models",
        source='Lei, Nolte, Schölkopf and Posner, "Compete and Compose: Learning '
        'Independent Mechanisms for Modular World Models", 2024',
        bundle="WorldModel",
        claim=All(
            (
                Above("accuracy", 0.8),
                Above("context", 0.85),
                Above("accuracy", 1.0, of="accuracy/window_1"),
                Below("rollout/comet_5", 1.0, of="rollout/messages_5"),
            )
        ),
        seeds=5,
        summary="a library of mechanisms, learnt by competition and composed anew",
    ),
    Entry(
        "complexity_grokking",
        family="learning theory",
        source='DeMoss et al., "The Complexity Dynamics of Grokking", Physica D 482, '
        "2025",
        bundle="Predictor",
        claim=All(
            (
                Above("complexity/peak", 2.0, of="complexity/final"),
                Below("step/memorised", 1.001, of="step/peak"),
                Below("step/peak", 1.0, of="step/grokked"),
                Above("accuracy/test", 0.99),
                Above(
                    "complexity/final_unregularised",
                    0.8,
                    of="complexity/peak_unregularised",
                ),
                Below("accuracy/test_unregularised", 0.05),
                Below("complexity/final", 0.5, of="complexity/final_unregularised"),
                Below("raw/bz2_change", 0.05),
                Below("raw/norm_change", 0.2),
                Above("integers/spearman", 0.9),
            )
        ),
        summary="a network's information content rises, then falls as it groks",
    ),
    Entry(
        "deep_conjugate_direction",
        family="differentiable physics",
        source='Kaneda et al., "A Deep Conjugate Direction Method for Iteratively '
        'Solving Linear Systems", ICML 2023',
        bundle="Predictor",
        claim=All(
            (
                Below("iterations/random", 0.25, of="cg/random"),
                Below("iterations/dipole", 0.25, of="cg/dipole"),
                Below("iterations/training", 0.25, of="cg/training"),
                Below("iterations/large", 0.5, of="cg/large"),
                Above("l_shape/converged", 0.99),
                Above("forgetful/random", 1.0, of="iterations/random"),
                Above("untrained/converged", 0.99),
                Above("untrained/random", 1.0, of="cg/random"),
            )
        ),
        summary="a network proposes the directions along which a system is solved",
    ),
    Entry(
        "differentiable_simulators",
        family="differentiable physics",
        source='Newbury et al., "A Review of Differentiable Simulators", 2024',
        bundle="Env",
        claim=All(
            (
                Between("slope/time_of_impact", -1.001, -0.999),
                Between("slope/impulse", 0.999, 1.001),
                Below("miss/time_of_impact", 1e-2),
                Above("miss/impulse", 5.0, of="miss/time_of_impact"),
                Below("several/both", 1.0, of="several/search"),
                Below("several/both", 1.0, of="several/descent"),
                Below("identify/error", 0.05),
                Below("identify/error", 1.0, of="identify/error_cem"),
                Above("estimate/alpha_order", 0.95),
                Below("estimate/first_order", 0.05),
                Below("variance_ratio/soft", 1.0),
                Above("variance_ratio/stiff", 1.0),
                Above("shac/solved", 0.99),
                Above("ppo/steps", 3.0, of="shac/steps"),
                Above("bptt_long/grad_norm", 10.0, of="bptt/grad_norm"),
                Above("shac_long/solved", 0.5),
                Below("bptt_long/solved", 0.01),
            )
        ),
        summary="which gradients of a simulation can be trusted, and what they buy",
        seeds=5,
    ),
    Entry(
        "ensemble",
        family="world models",
        source='Chua et al., "Deep Reinforcement Learning in a Handful of Trials using '
        'Probabilistic Dynamics Models", NeurIPS 2018',
        bundle="WorldModel",
        room="dynamics",
        summary="probabilistic networks, a random elite per step",
    ),
    Entry(
        "generalized_teacher_forcing",
        family="chaotic dynamics",
        source='Hess et al., "Generalized Teacher Forcing for Learning Chaotic '
        'Dynamics", ICML 2023',
        bundle="Predictor",
        claim=All(
            (
                Below("divergence", 1.0),
                Above("divergence/teacher", 3.0, of="divergence"),
                Above("divergence/free", 1.0, of="divergence"),
                Above("grad_norm/free", 100.0, of="grad_norm"),
                Between("lyapunov", 0.634, 1.178),
            )
        ),
        summary="an RNN that learns a chaotic attractor, forced just enough",
    ),
    Entry(
        "halfspace_tester_learner",
        family="learning theory",
        source='Gollakota et al., "An Efficient Tester-Learner for Halfspaces", ICLR '
        "2024",
        bundle=None,
        claim=All(
            (
                Below("bound/gaussian", 0.1),
                Below("bound/cube", 0.1),
                Below("accept/degenerate", 0.5),
                Below("accept/ball", 0.5),
                Above("slack/worst", 0.0),
                Above("excess_logistic/ball", 0.03),
                Above("moments/gaussian", 0.5),
                Below("moments/cube", 0.5),
            )
        ),
        summary="halfspaces under label noise, certified from the data or rejected",
    ),
    Entry(
        "hamiltonian_meta",
        family="differentiable physics",
        source='Song and Jeong, "Towards Cross Domain Generalization of Hamiltonian '
        'Representation via Meta Learning", ICLR 2024',
        bundle="Predictor",
        claim=All(
            (
                Below("error/meta", 0.5, of="error/random"),
                Below("error/meta", 0.8, of="error/multi_task"),
                Below("error/meta", 0.8, of="error/multi_task_plain"),
                Below("drift/meta", 1.0, of="drift/network"),
            )
        ),
        summary="a start for Hamiltonian networks, ten steps from any system's law",
    ),
    Entry(
        "hierarchical_polynomials",
        family="learning theory",
        source='Wang, Nichani and Lee, "Learning Hierarchical Polynomials with '
        'Three-Layer Neural Networks", ICLR 2024',
        bundle=None,
        claim=All(
            (
                Above("correlation/10", 1.0, of="correlation/4"),
                Above("correlation/20", 1.0, of="correlation/10"),
                Above("gap/20", 0.0),
                Below("no_slope/correlation", 0.3),
                Below("descent/difference", 0.05),
            )
        ),
        summary="three layers learn g(p(x)) from as many samples as p needs",
    ),
    Entry(
        "hypercrl",
        family="world models",
        source='Huang et al., "Continual Model-Based Reinforcement Learning with '
        'Hypernetworks", ICRA 2021',
        bundle="WorldModel",
        claim=All(
            (
                Below("forgetting/hyper", 2.0),
                Above("forgetting/finetune", 5.0),
                Above("kept/hyper", 0.9),
                Below("kept/finetune", 0.6),
                Below("current/hyper", 1.5),
                Below("regulariser/first", 1e-30),
            )
        ),
        summary="tasks one after the other: a network that makes each one's weights",
    ),
    Entry(
        "lazy_to_rich_grokking",
        family="learning theory",
        source='Kumar et al., "Grokking as the Transition from Lazy to Rich Training '
        'Dynamics", ICLR 2024',
        bundle="Predictor",
        claim=All(
            (
                Below("test/0.25", 1.0, of="test/1"),
                Below("test/1", 1.0, of="test/4"),
                Below("test/4", 1.0, of="test/16"),
                Above("alignment/0.25", 1.0, of="alignment/1"),
                Above("alignment/1", 1.0, of="alignment/4"),
                Above("alignment/4", 1.0, of="alignment/16"),
                Above("grok/test_at_fit", 3.0, of="grok/test"),
                Above("lazy/test", 5.0, of="grok/test"),
                Above("kernel/test", 5.0, of="grok/test"),
                Between("closed_form/ratio", 0.98, 1.02),
            )
        ),
        summary="generalisation delayed by an output scale, without weight decay",
    ),
    Entry(
        "local_lipschitz_bounds",
        family="learning theory",
        source='Shi et al., "Efficiently Computing Local Lipschitz Constants of Neural '
        'Networks via Bound Propagation", NeurIPS 2022',
        bundle=None,
        claim=All(
            (
                Above("coverage", 1.0),
                Below("linear/interval", 0.65),
                Below("linear/interval/worst", 1.0001),
                Below("interval/global/worst", 1.0001),
                Below("branched/linear", 0.95),
            )
        ),
        summary="certified local Lipschitz constants by linear bounds on the Jacobian",
    ),
    Entry(
        "local_nde_regularisation",
        family="differentiable physics",
        source='Pal et al., "Locally Regularized Neural Differential Equations: Some '
        'Black Boxes Were Meant to Remain Closed!", ICML 2023',
        bundle="Predictor",
        claim=All(
            (
                Below("steps/local", 0.851, of="steps/none"),
                Above("accuracy/local", 0.99, of="accuracy/none"),
            )
        ),
        summary="neural ODEs that need fewer steps, by one more step at a random time",
    ),
    Entry(
        "nclaw",
        family="differentiable physics",
        source='Ma et al., "Learning Neural Constitutive Laws From Motion Observations '
        'for Generalizable PDE Dynamics", ICML 2023',
        bundle="Predictor",
        claim=All(
            (
                Below("error/velocity", 0.1, of="error/velocity_plain"),
                Below("error/shape", 0.1, of="error/shape_plain"),
                Below("error/velocity", 0.1, of="error/velocity_wrong"),
                Below("error/shape", 0.1, of="error/shape_wrong"),
                Below("stress/turned", 1e-4),
            )
        ),
        summary="a material's law learnt from one motion, inside a simulator",
    ),
    Entry(
        "nde_solver_regularisation",
        family="differentiable physics",
        source='Pal et al., "Opening the Blackbox: Accelerating Neural Differential '
        'Equations by Regularizing Internal Solver Heuristics", ICML 2021',
        bundle="Predictor",
        claim=All(
            (
                Below("steps/error", 0.751, of="steps/none"),
                Above("accuracy/error", 0.99, of="accuracy/none"),
                Below("error_sum/error", 1.0, of="error_sum/none"),
            )
        ),
        summary="neural ODEs that need fewer steps: the solver's error in the loss",
    ),
    Entry(
        "on_neural_des",
        family="differentiable physics",
        source='Kidger, "On Neural Differential Equations", doctoral thesis, Oxford, '
        "2022",
        bundle="Predictor",
        claim=All(
            (
                Below("extrapolate/ratio", 0.3),
                Above("accuracy/cde", 0.95),
                Below("formula/off", 1e-3),
                Below("formula/constants", 0.05),
                Above("moons/accuracy", 0.98),
                Below("moons/gradient", 1e-4),
            )
        ),
        summary="ODEs with a known part, CDEs, equilibria; formulas read off a network",
    ),
    Entry(
        "polygrad",
        family="world models",
        source=_WHERE,
        bundle="WorldModel",
        claim=All(
            (
                Below("error", 0.1, of="error/persistence"),
                Below("error", 1.1, of="error/autoregressive"),
                Below("error", 1.1, of="error/reference"),
                Between("z/mean", -0.15, 0.15),
                Between("z/std", 0.8, 1.25),
                Above("z/std_unguided", 1.8),
                Above("noise/ratio_least", 0.9),
                Below("noise/ratio_largest", 1.1),
                Below("noise/autocorrelation", 0.1),
                Below("noise/crps", 1.03),
            )
        ),
        summary="whole on-policy trajectories in one policy-guided diffusion pass",
    ),
    Entry(
        "pv_rnn",
        family="world models",
        source='Ahmadi and Tani, "A Novel Predictive-Coding-Inspired Variational RNN '
        'Model for Online Prediction and Recognition", Neural Computation 31, 2019',
        bundle="Predictor",
        claim=All(
            (
                Below("nmse/middle", 0.1),
                Below("kl/middle", 0.7, of="kl/low"),
                Below("kl/high", 0.7, of="kl/middle"),
                Below("error", 0.7, of="error/prior"),
            )
        ),
        summary="no encoder: each sequence's causes are found by descent on its error",
    ),
    Entry(
        "random_teachers",
        family="learning theory",
        source='Sarnthein et al., "Random Teachers are Good Teachers", ICML 2023',
        bundle="Predictor",
        claim=All(
            (
                Above("gain/linear", 0.05),
                Above("gain/knn", 0.0),
                Above("gain/near", 0.02),
                Below("gain/noise", 0.5, of="gain/near"),
                Below("kl/student", 0.1, of="kl/start"),
                Above("teacher/unchanged", 0.5),
            )
        ),
        summary="features learnt from a random network, without labels",
    ),
    Entry(
        "rssm",
        family="world models",
        source='Hafner et al., "Mastering Atari with Discrete World Models", ICLR 2021',
        bundle="WorldModel",
        room="dynamics",
        summary="a recurrent latent that filters vectors or images, and imagines",
    ),
    Entry(
        "self_tuning_networks",
        family="learning theory",
        source='MacKay et al., "Self-Tuning Networks: Bilevel Optimization of '
        'Hyperparameters using Structured Best-Response Functions", ICLR 2019',
        bundle="Predictor",
        claim=All(
            (
                Above("ridge/cosine", 0.9),
                Below("ridge/valid_from_small", 1.03, of="ridge/valid_grid"),
                Below("ridge/valid_from_large", 1.03, of="ridge/valid_grid"),
                Below("network/test", 1.1, of="network/test_search"),
                Below("network/test", 0.9, of="network/test_first"),
            )
        ),
        summary="hyperparameters tuned in one run by a network of best responses",
    ),
    Entry(
        "spartan",
        family="world models",
        source='Lei, Schölkopf and Posner, "SPARTAN: A Sparse Transformer World Model '
        'Attending to What Matters", NeurIPS 2025',
        bundle="WorldModel",
        claim=All(
            (
                Below("error", 1.5, of="error/dense"),
                Below("shd", 0.7, of="shd/dense"),
                Below("shd", 0.4, of="shd/empty"),
                Below("shd", 1.0, of="shd/global"),
                Above("targets/f1", 0.9),
                Below("removal", 1.0, of="removal/dense"),
                Below("error/adapted", 1.3, of="error/adapted_all"),
            )
        ),
        summary="a sparse transformer whose attention masks are the causal graph",
    ),
    Entry(
        "statmech_continual_learning",
        family="learning theory",
        source='Li et al., "Statistical mechanics of continual learning: variational '
        'principle and mean-field potential", Phys. Rev. E 108, 014309 (2023)',
        bundle=None,
        claim=All(
            (
                Between("perceptron/binary", 0.21, 0.34),
                Below("perceptron/mean", 1.2, of="perceptron/theory_mean"),
                Below("small/first_difference", 0.05),
                Below("two/variational_excess", 0.95, of="two/finetune_excess"),
                Below("two/second_difference", 0.05),
                Above("permuted/over_finetune", 0.1),
                Above("permuted/over_metaplastic", 0.05),
                Above("permuted/over_metaplastic_tuned", -0.03),
            )
        ),
        summary="binary networks that keep old tasks, each posterior the next prior",
    ),
    Entry(
        "tdm",
        family="world models",
        source='Schubert et al., "A Generalist Dynamics Model for Control", 2023',
        bundle="WorldModel",
        claim=All(
            (
                Below("error/history_10", 0.5, of="error/context_free"),
                Below("error/history_10", 1.0, of="error/history_3"),
                Below("error/history_3", 1.0, of="error/history_1"),
                Below("error/tuned_1", 1.0, of="error/scratch_1"),
                Below("error/tuned_3", 1.0, of="error/scratch_3"),
                Above("score/tdm", 0.7),
                Above("wins", 11.5),
            )
        ),
        summary="one transformer for many systems: plans in those it never saw",
    ),
    Entry(
        "transfer_taxonomy",
        family="world models",
        source='Wulfmeier et al., "Foundations for Transfer in Reinforcement Learning: '
        'A Taxonomy of Knowledge Modalities", 2023',
        bundle=None,
        claim=All(
            (
                Above("same/gain/data", 0.0),
                Above("same/gain/dynamics", 0.0),
                Above("same/gain/reward", 0.0),
                Above("same/gain/policy", 0.0),
                Above("same/jump_start/policy", 0.9),
                Above("reward/gain/dynamics", 1.0, of="reward/gain/policy"),
                Above("reward/gain/data_relabelled", 1.0, of="reward/gain/data"),
                Below("dynamics/gain/frozen", 0.05),
                Below("dynamics/gain/policy", 0.05),
                Above("dynamics/gain/reward", 0.0),
                Above("dynamics/gain/dynamics", 1.0, of="dynamics/gain/frozen"),
                Below("same/low/control", 0.0),
                Above("same/high/control", 0.0),
            )
        ),
        summary="what data, dynamics, reward, value and policy buy in another task",
    ),
    Entry(
        "transformer",
        family="world models",
        source=f"{_WHERE}, baseline",
        bundle="WorldModel",
        room="dynamics",
        summary="a causal transformer that predicts the next step",
    ),
    Entry(
        "twist",
        family="world models",
        source='Yamada et al., "TWIST: Teacher-Student World Model Distillation for '
        'Efficient Sim-to-Real Transfer", ICRA 2024',
        bundle=None,  # a WorldModel, of a trained teacher
        claim=All(
            (
                Below("reward/student", 0.5, of="reward/scratch"),
                Above("success/student", 0.8, of="success/teacher"),
                Above("success/student", 1.0, of="success/scratch"),
            )
        ),
        summary="a model of images that a model of the simulator's state taught",
    ),
)


def find(name: str) -> Entry:
    """The row of a system.

    Raises:
        KeyError: for an unknown name; the caller knows how to suggest one.
    """
    return {entry.name: entry for entry in ENTRIES}[name]


def judge(entry: Entry, results: Sequence[Mapping[str, float]]) -> list[Verdict]:
    """A verdict per seed.

    Raises:
        ValueError: if the row claims nothing, or a metric is missing.
    """
    if entry.claim is None:
        raise ValueError(f"{entry.name} claims nothing that could be checked.")
    return [entry.claim.check(metrics) for metrics in results]


def _compare(claim, word, metrics, holds) -> Verdict:
    value, limit = _number(metrics, claim.metric), claim.limit
    text = f"{claim.metric} {value:.4g}, {word} {limit:g}"
    if claim.of is not None:
        base = _number(metrics, claim.of)
        limit = limit * base
        text += f" of {claim.of} {base:.4g}"
    # NaN is below and above nothing.
    return Verdict(bool(holds(value, limit)) and math.isfinite(value), text)


def _number(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise ValueError(f"the experiment returns no {name!r}, only {sorted(metrics)}.")
    return float(metrics[name])
