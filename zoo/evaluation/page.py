"""How lines are told apart in every figure."""

#: Okabe and Ito's colours stay apart for every kind of colour blindness; marks and dashes say it again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one more than colours, so that no pair comes twice soon
DASHES = ("-", "--", "-.", ":")
