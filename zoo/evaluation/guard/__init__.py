"""How a guarded vision-language model is measured: refusals, figures, latency, report."""
