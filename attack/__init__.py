"""Attacks on a classifier of text by changing a few words, to measure how robust it is (Gaiński &
Bałazy 2023, "Step by Step Loss Goes Very Far"; the baselines GBDA, Guo et al. 2021, and HotFlip,
Ebrahimi et al. 2018).

    P = softmax(Θ)        a distribution over words at each position; its embedding is P·E
    maximize  -[Z_y - max Z_j + κ]₊ + λ·similarity + μ·fluency  over Θ, then fix P word by word

    python -m attack RUN --task sst --limit 200

Left out: black-box attacks, inserting and deleting words, words of several tokens.
"""
