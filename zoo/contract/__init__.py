"""Plain data that travels the whole road: card, policy, verdict, and how they are read. No torch."""
