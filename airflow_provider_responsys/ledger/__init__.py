"""Who has been sent what, remembered across crashes."""
