"""This room holds a model as it is given: its inputs, hooks, state, copies, and the ranks that
share it.
"""
