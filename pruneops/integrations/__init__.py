"""Pruning inside the training frameworks of others; each module needs the library that it is named after."""
