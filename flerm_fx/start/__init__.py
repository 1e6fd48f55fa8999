"""The start: FSLRs at the beginning of training, by a procedure that repeats anywhere."""
