"""`python -m benchmarks.paired` with the models and batch sizes that a GPU is measured with: `python -m benchmarks.gpu`."""

from benchmarks.paired import main

if __name__ == "__main__":
    main({"sd15": (1, 8), "sdxl": (1, 8), "pixart_sigma": (1, 8), "flux_dev": (1, 8)}, "gpu.json")
