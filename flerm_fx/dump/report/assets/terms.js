"use strict";

// What the words of the page mean, told where they stand.

const TERMS = {
  "FSLR": "function-space learning rate: how far a parameter's update moves the model's outputs, as a root mean square, per unit of learning rate",
  "late FSLR": "the FSLR some steps after the start, where one at the start is exactly 0",
  "base FSLR": "the FSLR that the parameter has to meet: the sum of share times FSLR over the base parameters that it answers to",
  "± stderr": "standard error of the FSLR, which random draws leave; 0 where it was measured exactly",
  "multiplier": "the factor of the base's learning rate at which the parameter trains, so that its updates move the outputs as the base's do: base FSLR over FSLR",
  "error": "relative standard error of the multiplier, before it is pooled over blocks",
  "interval": "of a predicted multiplier, at 90 %",
  "base": "the base parameter that this one answers to; ×0.5 is the share of that parameter's FSLR that falls to it",
  "op": "the operation that the parameter enters first",
  "doubt": "what speaks against the match",
  "method": "how the FSLR was measured: exactly, or by random draws of the outputs",
  "samples": "random draws of the outputs; none where it was measured exactly",
  "status": "matched: both FSLRs are known. predicted: a scaling law gives the multiplier. unresolved: an FSLR is zero or noise, so the multiplier is 1 or a first guess. unmatched: the base has no counterpart, so the multiplier is 1. unused: the outputs do not depend on the parameter",
  "note": "what the measurement had to work around",
};

/** A word with its meaning as a title, for those that have one. */
function term(word) {
  return TERMS[word] ? make("span", { className: "term", title: TERMS[word] }, word) : word;
}
