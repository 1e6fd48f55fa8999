"""What is known of operations in a graph."""
