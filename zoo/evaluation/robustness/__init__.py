"""How a model under a policy holds against attacks: figures with intervals, stored examples, a leaderboard."""
