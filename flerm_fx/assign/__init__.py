"""From matches and FSLRs to multipliers."""
