"""What gradient inversion finds under masks, by ratio, policy, attacker, and the model's age."""
