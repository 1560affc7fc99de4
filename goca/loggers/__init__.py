"""Where a finished run is shown besides its own folder. Results are on disk before a logger is asked; none can stop a run."""

from goca.loggers.base import Example, Logger, NoLogger, Report, Several
from goca.loggers.files import CsvLogger, TensorBoardLogger
from goca.loggers.weights_and_biases import WandbLogger

__all__ = ["CsvLogger", "Example", "Logger", "NoLogger", "Report", "Several", "TensorBoardLogger", "WandbLogger"]
