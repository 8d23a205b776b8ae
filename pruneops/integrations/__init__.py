"""Adapters to other libraries; importing one of them imports nothing of the library itself until it is used."""
