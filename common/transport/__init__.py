"""Transports: how frames and bulk bytes travel. Chosen by the scheme of an address (`tcp://`, `mem://`)."""
