"""How fast: a bundle against its peers, and what each part of the road costs."""
