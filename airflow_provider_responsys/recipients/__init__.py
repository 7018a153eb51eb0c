"""From rows to validated, distinct recipients on local disk, before anything is sent."""
