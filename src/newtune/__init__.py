"""newtune: fine-tuning of large language models from one YAML file, with proof of what it did."""

__version__ = "0.1.0"
