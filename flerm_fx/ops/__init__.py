"""This room holds what is known of operations in a graph."""
