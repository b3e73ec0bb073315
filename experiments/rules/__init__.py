"""How the two rules of a sensitivity map compare while a LeNet is trained; see README.md."""
