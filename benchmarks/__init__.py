"""Speed: what sampling, caching and training cost, each figure a ratio measured in one run."""
