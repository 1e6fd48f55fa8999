"""This room holds what a training run is made of: update rules, parameter groups, loss, schedule,
batches.
"""
