"""What an operator is: one declaration each, and what its rules work with."""
