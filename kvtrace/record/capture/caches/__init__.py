"""Cache objects while a forward runs: what was appended, copied, handed on, or changed."""
