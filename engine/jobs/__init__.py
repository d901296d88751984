"""Trainings and evaluations as jobs: submit, find again, wait, explain, cancel."""
