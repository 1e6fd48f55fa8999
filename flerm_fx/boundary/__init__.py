"""This room is where things enter and leave: options that calls take, and text and files that go
out.
"""
