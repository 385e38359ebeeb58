"""Where equations come from. Docstrings cite the keys below: ``Source: [narayanan2021] equation 3``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """One paper, manual or derivation that an equation cites."""

    title: str
    authors: str
    year: int
    url: str


def _arxiv(title: str, authors: str, year: int, number: str) -> Reference:
    return Reference(title, authors, year, f"https://arxiv.org/abs/{number}")


REFERENCES: dict[str, Reference] = {
    "ainslie2023": _arxiv(
        "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
        "Ainslie et al.",
        2023,
        "2305.13245",
    ),
    "ang2005": Reference(
        "The LMDI approach to decomposition analysis: a practical guide",
        "Ang",
        2005,
        "https://doi.org/10.1016/j.enpol.2003.10.010",
    ),
    "austin2025": Reference("How to Scale Your Model", "Austin et al.", 2025, "https://jax-ml.github.io/scaling-book/"),
    "bang2024": _arxiv(
        "vTrain: A Simulation Framework for Evaluating Cost-effective and Compute-optimal "
        "Large Language Model Training",
        "Bang et al.",
        2024,
        "2312.12391",
    ),
    "chowdhery2022": _arxiv("PaLM: Scaling Language Modeling with Pathways", "Chowdhery et al.", 2022, "2204.02311"),
    "daly2006": Reference(
        "A higher order estimate of the optimum checkpoint interval for restart dumps",
        "Daly",
        2006,
        "https://doi.org/10.1016/j.future.2004.11.016",
    ),
    "dao2022": _arxiv(
        "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", "Dao et al.", 2022, "2205.14135"
    ),
    "dao2023": _arxiv(
        "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", "Dao", 2023, "2307.08691"
    ),
    "deepseek2024v2": _arxiv(
        "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
        "DeepSeek-AI",
        2024,
        "2405.04434",
    ),
    "deepseek2024v3": _arxiv("DeepSeek-V3 Technical Report", "DeepSeek-AI", 2024, "2412.19437"),
    "derived": Reference("own derivation, steps in the docstring", "dlcalc", 2025, "https://github.com/dlcalc/dlcalc"),
    "fedus2021": _arxiv(
        "Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity",
        "Fedus et al.",
        2021,
        "2101.03961",
    ),
    "hagemann2023": _arxiv(
        "Efficient Parallelization Layouts for Large-Scale Distributed Model Training",
        "Hagemann et al.",
        2023,
        "2311.05610",
    ),
    "huang2019": _arxiv(
        "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism",
        "Huang et al.",
        2019,
        "1811.06965",
    ),
    "isaev2023": Reference(
        "Calculon: a Methodology and Tool for High-Level Codesign of Systems and Large Language Models",
        "Isaev et al.",
        2023,
        "https://doi.org/10.1145/3581784.3607102",
    ),
    "kaplan2020": _arxiv("Scaling Laws for Neural Language Models", "Kaplan et al.", 2020, "2001.08361"),
    "korthikanti2022": _arxiv(
        "Reducing Activation Recomputation in Large Transformer Models", "Korthikanti et al.", 2022, "2205.05198"
    ),
    "lepikhin2020": _arxiv(
        "GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding",
        "Lepikhin et al.",
        2020,
        "2006.16668",
    ),
    "jacobs2023": _arxiv(
        "DeepSpeed Ulysses: System Optimizations for Enabling Training of Extreme Long Sequence Transformer Models",
        "Jacobs et al.",
        2023,
        "2309.14509",
    ),
    "liu2023": _arxiv(
        "Ring Attention with Blockwise Transformers for Near-Infinite Context", "Liu et al.", 2023, "2310.01889"
    ),
    "llama2024": _arxiv("The Llama 3 Herd of Models", "Llama Team, AI @ Meta", 2024, "2407.21783"),
    "megatron_lm": Reference(
        "Megatron-LM and Megatron Core: documentation and source",
        "NVIDIA",
        2025,
        "https://github.com/NVIDIA/Megatron-LM",
    ),
    "narayanan2019": Reference(
        "PipeDream: Generalized Pipeline Parallelism for DNN Training",
        "Narayanan et al.",
        2019,
        "https://doi.org/10.1145/3341301.3359646",
    ),
    "narayanan2021": _arxiv(
        "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
        "Narayanan et al.",
        2021,
        "2104.04473",
    ),
    "moorethreads2025": Reference(
        "SimuMax: rates of kernels measured on one B200, configs/system/b200_bf16_ceperm.json",
        "Moore Threads",
        2025,
        "https://github.com/MooreThreads/SimuMax/blob/e691807a7ef8a7eca3d4aa199c34b1591181f11b/configs/system/b200_bf16_ceperm.json",
    ),
    "nccl_docs": Reference(
        "NCCL documentation and nccl-tests performance notes",
        "NVIDIA",
        2025,
        "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/index.html",
    ),
    "nvidia_gemm_guide": Reference(
        "Matrix Multiplication Background User's Guide",
        "NVIDIA",
        2023,
        "https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html",
    ),
    "zhao2025deepep": Reference(
        "DeepEP: an efficient expert-parallel communication library, with HybridEP (docs/README_Hybrid-EP.md)",
        "Zhao et al., NVIDIA",
        2025,
        "https://github.com/deepseek-ai/DeepEP",
    ),
    "qi2023": _arxiv("Zero Bubble Pipeline Parallelism", "Qi et al.", 2023, "2401.10241"),
    "rajbhandari2020": _arxiv(
        "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", "Rajbhandari et al.", 2020, "1910.02054"
    ),
    "shah2024": _arxiv(
        "FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision",
        "Shah et al.",
        2024,
        "2407.08608",
    ),
    "shazeer2020": _arxiv("GLU Variants Improve Transformer", "Shazeer", 2020, "2002.05202"),
    "sinha2022": _arxiv(
        "Not All GPUs Are Created Equal: Characterizing Variability in Large-Scale, Accelerator-Rich Systems",
        "Sinha et al.",
        2022,
        "2208.11035",
    ),
    "thakur2005": Reference(
        "Optimization of Collective Communication Operations in MPICH",
        "Thakur, Rabenseifner, Gropp",
        2005,
        "https://doi.org/10.1177/1094342005051521",
    ),
    "transformer_engine": Reference(
        "Transformer Engine: documentation and source",
        "NVIDIA",
        2025,
        "https://github.com/NVIDIA/TransformerEngine",
    ),
    "young1974": Reference(
        "A first order approximation to the optimum checkpoint interval",
        "Young",
        1974,
        "https://doi.org/10.1145/361147.361115",
    ),
    "zadouri2026": _arxiv(
        "FlashAttention-4: Algorithm and Kernel Pipelining Co-Design for Asymmetric Hardware Scaling",
        "Zadouri et al.",
        2026,
        "2603.05451",
    ),
    "zhao2023fsdp": _arxiv(
        "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", "Zhao et al.", 2023, "2304.11277"
    ),
}
