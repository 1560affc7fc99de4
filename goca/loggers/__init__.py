"""Where a finished run is shown besides its own folder. Results are on disk before a logger is asked; none can stop a run."""

from goca.figures.example import Example
from goca.loggers.base import NoLogger, Several
from goca.loggers.files import CsvLogger, TensorBoardLogger
from goca.loggers.weights_and_biases import WandbLogger
from goca.runs.report import Logger, Report

__all__ = ["CsvLogger", "Example", "Logger", "NoLogger", "Report", "Several", "TensorBoardLogger", "WandbLogger"]
