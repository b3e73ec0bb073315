"""Tables and figures as pages: HTML of a run or of experiments, Markdown of benchmarks."""
