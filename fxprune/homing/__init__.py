"""Back in the original class: where its sizes come from, what they become, and the proof that it computes the same."""
