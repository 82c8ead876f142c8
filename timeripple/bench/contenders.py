"""What `bench work` compares: dense, ours and every peer, each in several numbers of steps."""

from __future__ import annotations

DENSE_STEPS = (4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 24, 28)


def at_steps(text: str, *steps: int) -> list[str]:
    """A method at several numbers of steps."""
    return [f"{text}:steps={count}" for count in steps]


METHODS = (
    *at_steps("dense", *DENSE_STEPS),
    *at_steps("dense:solver=euler", 10, 14, 20, 28),
    *at_steps("dense:solver=dpm++", 7, 10, 14, 20),
    *at_steps("dense:solver=heun", 4, 7, 10),
    *at_steps("token:0.3", 8, 10, 14, 20),
    *at_steps("token:0.5", 8, 10, 14, 20, 28),
    *at_steps("token:0.6", 10, 14, 20, 28),
    *at_steps("token:0.7", 14, 20, 28),
    *at_steps("token:0.5+forecast:0.7", 14, 20, 28),
    *at_steps("token:0.5+mag-cache:0.06", 20, 28, 40),
    *at_steps("token:0.5+mag-cache:0.03", 20),
    *at_steps("token:0.5+taylorseer:3", 20, 28),
    *at_steps("attention-forecast:0.5", 10, 14, 20),
    *at_steps("forecast:0.45", 14, 20, 28),
    *at_steps("forecast:0.7", 10, 14, 20),
    *at_steps("forecast:0.45:start=3", 20),
    *at_steps("forecast:0.45:order=0", 20),
    *at_steps("forecast:0.45:order=2", 20),
    *at_steps("taylorseer:3", 14, 20, 28),
    *at_steps("taylorseer:2", 14, 20),
    *at_steps("taylorseer:3:spacing=even", 14, 20, 28),
    *at_steps("taylorseer:2:spacing=even", 10, 14, 20),
    *at_steps("spectrum:0.75", 14, 20, 28),
    *at_steps("spectrum:0.75:weight=0.5", 20, 28),
    *at_steps("spectrum:0:start=3:weight=0.5", 14, 20),
    *at_steps("easycache:0.05", 14, 20, 28),
    *at_steps("easycache:0.1", 14, 20, 28),
    *at_steps("teacache:0.08", 14, 20, 28),
    *at_steps("teacache:0.15", 14, 20, 28),
    *at_steps("mag-cache:0.06", 14, 20, 28),
    *at_steps("mag-cache:0.1", 20, 28),
    *at_steps("mag-cache:0.03", 20),
    *at_steps("cache-dit:0.08", 14, 20, 28),
    *at_steps("cache-dit:0.12:taylor=1", 14, 20, 28),
    *at_steps("cache-dit:share=0.5:taylor=1", 14, 20),
    *at_steps("first-block-cache:0.1", 14, 20, 28),
    *at_steps("first-block-cache:0.05", 14, 20),
    *at_steps("hsa:0.25", 14, 20, 28),
    *at_steps("hsa:0.25:divisor=2", 10, 14, 20),
    *at_steps("lightning-cp:3", 20, 28),
    *at_steps("lightning-cp:2", 14, 20, 28),
    *at_steps("pab:2", 10, 14, 20),
    *at_steps("faster-cache", 14, 20),
    *at_steps("delta-dit:2:share=0.8", 14, 20),
    *at_steps("output-cache:0.5", 14, 20),
    *at_steps("svg", 14, 20),
    *at_steps("svg:0.5", 10, 14),
    *at_steps("svg2", 14, 20),
    *at_steps("svg2:0.5:dense_first=0.1:query_cluster=64:key_cluster=16", 10, 14, 20),
    *at_steps("sliding-window:0.5", 10, 14, 20),
    *at_steps("skip:0.5", 10, 14, 20),
    *at_steps("compact:0.5", 10, 14),
    *at_steps("ditfastattn:0.5", 10, 14),
    *at_steps("re-ttention:0.5", 14),
    *at_steps("token-merge:0.5", 10, 14),
)
"""Dense, ours, and every peer with what its authors recommend and with what is best for it here."""
