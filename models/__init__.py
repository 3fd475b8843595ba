"""Data contracts of the pipeline: frozen Pydantic models, not neural networks.

Everything that one stage hands to another, that a person writes into a recipe, or that lies in a manifest is declared
here once. Nothing in this package reads the environment, touches a file, or imports torch or Prefect.
"""
