"""The start holds the FSLRs at the beginning of training, by a procedure that repeats anywhere."""
