"""Shared by tests: small data, methods and models, stand-ins for the world outside, ways to run and to kill."""
